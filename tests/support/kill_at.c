/* Counts what a run changes in a folder and in /dev/shm, call by call, and kills it at one.

Preloaded into every process of a run (LD_PRELOAD). KILL_FOLDER: where calls count. KILL_TRACE: a
file that gets one line a call, "pid call name"; its length is the count that all processes share.
KILL_AT: number of the call, from 1, that the run does not survive; 0: none. KILL_HOW: "before"
the call, "half" (a write gets half of its bytes to the file first) or "after" it. KILL_WHOM:
"one", the process that calls, or "all" of its process group. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define FILES 65536
#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static char names[FILES][64];       /* of the open files whose writes count; "" for others */

static int counts(const char *path) {
    const char *folder = getenv("KILL_FOLDER");
    return folder && path && (strncmp(path, folder, strlen(folder)) == 0
                              || strncmp(path, "/dev/shm/", 9) == 0);
}

static void die(void) {
    const char *whom = getenv("KILL_WHOM");
    kill(whom && strcmp(whom, "all") == 0 ? 0 : getpid(), SIGKILL);
    for (;;) pause();
}

static int is_how(const char *how) {
    const char *wanted = getenv("KILL_HOW");
    return strcmp(wanted ? wanted : "before", how) == 0;
}

/* Count a call; return whether it is the one. Kills before it where that is asked for. */
static int note(const char *call, const char *path) {
    const char *trace = getenv("KILL_TRACE"), *at = getenv("KILL_AT");
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    char line[64];
    int file, hit;
    off_t end;
    if (!trace) return 0;
    file = (int)syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC,
                        0600);
    snprintf(line, sizeof line, "%7d %-10.10s %.43s", (int)getpid(), call, name);
    memset(line + strlen(line), ' ', sizeof line - strlen(line));
    line[sizeof line - 1] = '\n';
    /* Without a lock, which a process forked meanwhile would keep: the end of what was appended
       is this call's place. */
    if (file < 0 || syscall(SYS_write, file, line, sizeof line) < 0) return 0;
    end = lseek(file, 0, SEEK_CUR);
    syscall(SYS_close, file);
    hit = at && end / (off_t)sizeof line == atol(at);
    if (hit && is_how("before")) die();
    return hit;
}

static int note_file(const char *call, int file) {
    return file >= 0 && file < FILES && names[file][0] ? note(call, names[file]) : 0;
}

static void finish(int hit) { if (hit) die(); }

static int keep(int file, const char *path) {
    if (file >= 0 && file < FILES)
        snprintf(names[file], sizeof names[file], "%s",
                 strrchr(path, '/') ? strrchr(path, '/') + 1 : path);
    return file;
}

#define OPEN(name) \
int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list more; \
    int hit, file, matters = counts(path) && (flags & (O_WRONLY | O_RDWR | O_CREAT)); \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); \
    } \
    hit = matters ? note("open", path) : 0; \
    file = real(path, flags, mode); \
    if (matters) keep(file, path); else if (file >= 0 && file < FILES) names[file][0] = 0; \
    finish(hit); \
    return file; \
}
OPEN(open)
OPEN(open64)

int close(int file) {
    REAL(close);
    if (file >= 0 && file < FILES) names[file][0] = 0;
    return real(file);
}

ssize_t write(int file, const void *bytes, size_t size) {
    REAL(write);
    int hit = note_file("write", file);
    ssize_t written = real(file, bytes, hit && is_how("half") ? size / 2 : size);
    finish(hit);
    return written;
}

ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t offset) {
    REAL(pwrite64);
    int hit = note_file("pwrite", file);
    ssize_t written = real(file, bytes, hit && is_how("half") ? size / 2 : size, offset);
    finish(hit);
    return written;
}

#define ON_FILE(name, parameters, arguments) \
int name parameters { \
    REAL(name); \
    int hit = note_file(#name, file), result = real arguments; \
    finish(hit); \
    return result; \
}
ON_FILE(fsync, (int file), (file))
ON_FILE(fdatasync, (int file), (file))
ON_FILE(ftruncate64, (int file, off64_t size), (file, size))
ON_FILE(posix_fallocate64, (int file, off64_t start, off64_t size), (file, start, size))

#define ON_PATH(name, path, parameters, arguments) \
int name parameters { \
    REAL(name); \
    int hit = counts(path) ? note(#name, path) : 0, result = real arguments; \
    finish(hit); \
    return result; \
}
ON_PATH(mkdir, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(rmdir, path, (const char *path), (path))
ON_PATH(unlink, path, (const char *path), (path))
ON_PATH(chmod, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, target, (const char *source, const char *target), (source, target))
ON_PATH(link, target, (const char *source, const char *target), (source, target))
ON_PATH(linkat, target, (int from, const char *source, int to, const char *target, int flags),
        (from, source, to, target, flags))
ON_PATH(symlink, target, (const char *source, const char *target), (source, target))
ON_PATH(unlinkat, path, (int folder, const char *path, int flags), (folder, path, flags))
