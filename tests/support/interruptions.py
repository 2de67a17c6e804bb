"""Ways to end a job that a good program cannot prevent, drawn at random."""

import random
import signal
import time

from common.weights.trailer import verify_checkpoint
from tests.support.digits_job import kill

CALLS_A_SAVE = 20           # of the system, about, in one save of digits_job
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupter:
    """Runs a job to its end through interruptions, and counts them.

    Kills are SIGKILLs: of the whole job, of one of its processes, or by the process itself at
    a random system call inside a save. Signals let it save first. After each, every
    checkpoint must be good, and the newest no older than the newest before.
    """

    def __init__(self, job, seed, seconds):
        self.job = job
        self.random = random.Random(seed)
        self.seconds = seconds              # a kill comes so long after training began, at most
        self.counts = {}                    # {way: how often it ended the job}

    def run(self, most, ways):
        """Start the job again and again until it is done, interrupting it at most so often.

        Returns the number of interruptions that hit.
        """
        hits = 0
        newest = 0
        while True:
            way = self.random.choice(ways) if hits < most else 'none'
            code = self._run_once(way)
            newest = self._check(newest)
            if code == 0:
                return hits
            assert way != 'none', self.job.text
            assert code in self._expected(way), f'{way}: exit code {code}\n{self.job.text}'
            hits += 1
            self.counts[way] = self.counts.get(way, 0) + 1

    def _run_once(self, way):
        job = self.job
        if way == 'inside a save':
            call = self.random.randint(1, 3 * CALLS_A_SAVE)
            return job.run(fault=f'any:{call}:kill')
        job.start()
        if way == 'none':
            return job.wait()
        if self.random.random() < 0.9:      # most of the time in training, not in the start
            job.wait_for(lambda: 'Effective batch' in job.text)
            job.wait_for(_after(self.random.uniform(0, self.seconds)))
        else:
            job.wait_for(_after(self.random.uniform(0, 3)))
        if way == 'kill one':
            processes = list(job.find_processes())
            if processes:
                kill(self.random.choice(processes), signal.SIGKILL)
        elif way == 'kill all':
            for pid in job.find_processes():
                kill(pid, signal.SIGKILL)
        else:
            kill(job.process.pid, way)
        return job.wait()

    def _expected(self, way):
        if isinstance(way, signal.Signals):
            # Before training has begun the signal's own action may end a process.
            return (128 + way, -way, 1, 128 + signal.SIGKILL)
        return (-signal.SIGKILL, 128 + signal.SIGKILL, 1)

    def _check(self, newest):
        """Every checkpoint is readable, and none that was there is lost."""
        updates = []
        for entry in self.job.find_checkpoints():
            verify_checkpoint(entry.path)
            updates.append(entry.summary['update'])
        assert max(updates, default=0) >= newest, 'a checkpoint was lost'
        return max(updates, default=0)


def _after(seconds):
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end
