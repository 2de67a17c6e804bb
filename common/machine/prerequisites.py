"""What must be there before anything else is imported: Python, Paddle, a NumPy it works with.

A script that lacks one says so in a line, also for -h, instead of a traceback or a crash later on.
This file is read by the Python that may be too old: no newer syntax here than that of 3.8.
"""

import contextlib
import importlib.util
import os
import re
import sys

OLDEST, NEWEST = (3, 10), (3, 13)
# Paddle's major version: the first NumPy that breaks it.
TOO_NEW_NUMPY = {2: (2, 3), 3: (2, 4)}
PACKAGES = {'yacs': 'yacs', 'yaml': 'PyYAML', 'PIL': 'Pillow', 'tqdm': 'tqdm'}
# Without so many open files, or bytes of addresses, Paddle cannot even be imported.
LEAST_FILES, LEAST_MEMORY = 12, 800_000_000
INSTALL = 'pip install -r requirements.txt'
GPU = '(for a GPU: requirements-gpu.txt)'


def require(script_folder: str) -> None:
    """End the program with exit code 2 and a line where something is missing.

    script_folder: of the scripts; in a program from elsewhere ImportError is raised instead.
    """
    problem = find_low_limit(*read_limits()) or find_problem(sys.version_info[:2], read_versions())
    if not problem:
        return
    problem = point_to(os.path.dirname(os.path.abspath(script_folder)), problem)
    main = getattr(sys.modules.get('__main__'), '__file__', None)
    if main and os.path.dirname(os.path.abspath(main)) == os.path.abspath(script_folder):
        print('error: ' + problem, file=sys.stderr)
        sys.exit(2)
    raise ImportError(problem)


def point_to(root: str, problem: str) -> str:
    """Return the line with the paths as they are from here.

    An environment that the README's first command made, and that is not active, is said.
    root: of the repository.
    """
    near = os.path.relpath(root)
    problem = problem.replace('requirements', os.path.join('' if near == '.' else near,
                                                           'requirements'))
    environment = os.path.join(root, '.venv')
    if os.path.exists(os.path.join(environment, 'bin', 'activate')) and \
            os.path.realpath(sys.prefix) != os.path.realpath(environment):
        problem = f'{problem.rstrip(".")}. Or activate the environment: . ' \
                  f'{os.path.relpath(environment)}/bin/activate'
    return problem


def find_problem(python: 'tuple[int, ...]', versions: 'dict[str, str | None]') -> str:
    """Return what is missing or too new, in a line; '' if nothing is.

    python: (major, minor). versions: {module: its version, '' if that is not known, None if the
    module is missing}.
    """
    name = f'Python {python[0]}.{python[1]}'
    fitting = f'Python {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]} will do.'
    if python < OLDEST:
        return f'{name} is too old; {fitting}'
    paddle, numpy = versions.get('paddle'), versions.get('numpy')
    if paddle is None:
        if python > NEWEST:
            return f'Paddle is not installed, and has no build for {name}; {fitting}'
        return f'Paddle is not installed: {INSTALL} {GPU}'
    if numpy is None:
        return f'NumPy is not installed: {INSTALL}'
    limit = TOO_NEW_NUMPY.get(_read_version(paddle)[0])
    if limit and _read_version(numpy) >= limit:
        return f'NumPy {numpy} is too new for Paddle {paddle}: ' \
               f'pip install "numpy<{limit[0]}.{limit[1]}"'
    missing = sorted(package for module, package in PACKAGES.items()
                     if versions.get(module) is None)
    if missing:
        return f'{", ".join(missing)} {"is" if len(missing) == 1 else "are"} not installed: ' \
               'pip install -r requirements-common.txt'
    return ''


def read_versions() -> 'dict[str, str | None]':
    """Return {module: version} of what is needed; nothing is imported."""
    if sys.version_info[:2] < OLDEST:
        return {}
    from importlib.metadata import PackageNotFoundError, version

    def find(module, *packages):
        """Return the version of a module; one that is blocked in sys.modules counts as missing."""
        is_there = sys.modules[module] is not None if module in sys.modules else \
            importlib.util.find_spec(module) is not None
        for package in packages if is_there else ():
            with contextlib.suppress(PackageNotFoundError):
                return version(package)
        return '' if is_there else None

    return {'paddle': find('paddle', 'paddlepaddle', 'paddlepaddle-gpu', 'paddlepaddle-xpu'),
            'numpy': find('numpy', 'numpy'), **{module: find(module) for module in PACKAGES}}


def find_low_limit(files: 'float', memory: 'float') -> str:
    """Return which limit of the system is too low for Paddle, in a line; '' if none is.

    files: that may be open. memory: bytes of addresses. Both may be infinite.
    """
    if files < LEAST_FILES:
        return f'only {files} files may be open, too few for Paddle: ulimit -n 1024'
    if memory < LEAST_MEMORY:
        return f'only {memory / 1e6:,.0f} MB of addresses may be used, too few for Paddle: ' \
               'ulimit -v unlimited'
    return ''


def read_limits() -> 'tuple[float, float]':
    """Return how many files may be open, and bytes of addresses used; inf where all may."""
    try:
        import resource
    except ImportError:                 # Windows
        return float('inf'), float('inf')
    found = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)]
    files, memory = [float('inf') if value == resource.RLIM_INFINITY else value for value in found]
    return files, memory


def _read_version(text):
    """Return (2, 3) of "2.3.1"; (0, 0) of what is no version."""
    match = re.match(r'(\d+)\.(\d+)', text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
