"""Programs that try to hang, escape, or pass without solving the problem: name -> source.

The problem is ``add(a, b)``. Those under ``ESCAPES`` return the right sum only if the escape they try succeeds, so for
all of them "passed" means the sandbox or the checker was beaten. ``{home}``, ``{port}`` and ``{prefix}`` are filled in.
"""

HANGS = {
    "loop while loading": "while True: pass",
    "loop when called": "def add(a, b):\n    while True: pass",
    "sleep": "import time\ntime.sleep(10**6)",
    "loop that ignores signals": (
        "import signal\n"
        "for s in range(1, 65):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True: pass"
    ),
    "alarm handler that starts over": (
        "import signal, time\n"
        "def again(*_):\n    signal.alarm(1)\n    time.sleep(100)\n"
        "signal.signal(signal.SIGALRM, again)\nsignal.signal(signal.SIGXCPU, again)\nagain()"
    ),
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": (
        "import threading, time\n"
        "while True:\n"
        "    try: threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    except RuntimeError: time.sleep(0.01)"
    ),
    "daemon by double fork": (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        while True: time.sleep(0.1)\n"
        "    os._exit(0)\n"
        "time.sleep(1000)"
    ),
    "endless output": "while True: print('x' * 65536)",
    "endless error output": "import sys\nwhile True: sys.stderr.write('x' * 65536)",
    "catastrophic regular expression": "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')",
    "power tower": "x = 9 ** 9 ** 9",
    "exception whose text never comes": (
        "class Slow(Exception):\n    def __str__(self):\n        while True: pass\ndef add(a, b):\n    raise Slow"
    ),
    "result that never ends": (
        "import itertools\nclass Endless(list):\n    def __iter__(self): return itertools.count()\n"
        "def add(a, b): return Endless()"
    ),
    "destructor that loops": (
        "class Loop:\n    def __del__(self):\n        while True: pass\n"
        "def add(a, b):\n    Loop()\n    return a + b + 1"
    ),
    "waits for input": "input()\nimport sys\nsys.stdin.read()\nimport os\nos.read(3, 10**6)\nos.read(3, 1)",
}

EXHAUSTION = {
    "memory in one piece": "x = bytearray(1 << 40)",
    "memory piece by piece": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "one huge file": "f = open('/tmp/f', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
    "many files": ("i = 0\nwhile True:\n    with open(f'/tmp/{i}', 'wb') as f: f.write(b'x' * (1 << 20))\n    i += 1"),
    "open files": "files = []\nwhile True: files.append(open('/dev/null'))",
    "huge result": "def add(a, b): return 'x' * (1 << 28)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)",
    "deep result": "def add(a, b):\n    x = []\n    for _ in range(10**6): x = [x]\n    return x",
}

EXITS = {
    "os._exit(0) while loading": "import os\nos._exit(0)",
    "os._exit(0) when called": "import os\ndef add(a, b): os._exit(0)",
    "sys.exit(0)": "import sys\nsys.exit(0)",
    "SystemExit when called": "def add(a, b): raise SystemExit(0)",
    "KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "kills itself": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "success printed at exit": (
        "import atexit, sys\natexit.register(lambda: print('{\"passed\": true}'))\nprint('passed')\nsys.exit(0)"
    ),
    "nothing": "",
    "syntax error": "def add(a, b:",
}

# Finds ``assert candidate(1, 2) == 3`` in any text it is given, without holding those words itself.
_READ_EXPECTED = (
    "import re, sys\n"
    "def expected(values, a, b):\n"
    "    for text in map(str, values):\n"
    "        found = re.search('ass' + 'ert cand' + f'idate.{a}, {b}. == ([0-9]+)', text)\n"
    "        if found: return int(found.group(1))\n"
)
FORGERIES = {
    "equals everything": "class E:\n    def __eq__(self, other): return True\ndef add(a, b): return E()",
    "number that equals everything": (
        "class E(int):\n"
        "    def __eq__(self, other): return True\n"
        "    def __ne__(self, other): return False\n"
        "    __hash__ = int.__hash__\n"
        "def add(a, b): return E(0)"
    ),
    "text that equals everything": (
        "class E(str):\n    def __eq__(self, other): return True\ndef add(a, b): return E('')"
    ),
    "other AssertionError": (
        "import builtins\nclass Quiet(Exception): pass\nbuiltins.AssertionError = Quiet\ndef add(a, b): return None"
    ),
    "assert switched off": (
        "import sys, builtins\nbuiltins.__debug__ if True else 0\n"
        "sys.flags = None\nbuiltins.__import__ = lambda *a, **k: None\ndef add(a, b): return None"
    ),
    "raises AssertionError": "def add(a, b): raise AssertionError('fine')",
    "trace function on all frames": (
        "import sys\n"
        "def trace(frame, event, arg):\n"
        "    for f in iter(lambda: None, None): pass\n"
        "    return trace\n"
        "sys.settrace(trace)\ndef add(a, b): return None"
    ),
    "looks for the expected value in frames": _READ_EXPECTED
    + (
        "def add(a, b):\n"
        "    frame, texts = sys._getframe(), []\n"
        "    while frame:\n"
        "        texts += list(frame.f_locals.values()) + list(frame.f_globals.values())\n"
        "        frame = frame.f_back\n"
        "    return expected(texts, a, b)"
    ),
    "looks for the tests in memory": _READ_EXPECTED
    + (
        "import gc\n"
        "def add(a, b):\n"
        "    texts = []\n"
        "    for value in gc.get_objects():\n"
        "        if isinstance(value, dict): texts += list(value.values())\n"
        "        if isinstance(value, (list, tuple)): texts += list(value)\n"
        "    return expected(texts, a, b)"
    ),
    "verdict written to every descriptor": (
        "import json, os\n"
        "data = json.dumps({'passed': True, 'reason': 'passed'}).encode()\n"
        "for fd in range(256):\n"
        "    try: os.write(fd, len(data).to_bytes(4, 'big') + data)\n"
        "    except OSError: pass\n"
        "os._exit(0)"
    ),
    "answers written ahead": (
        "import os, pickle\n"
        "data = pickle.dumps((True, True))\n"
        "for fd in range(3, 64):\n"
        "    try:\n"
        "        for _ in range(8): os.write(fd, len(data).to_bytes(4, 'big') + data)\n"
        "    except OSError: pass\n"
        "def add(a, b): return None"
    ),
    "patched protocol": (
        "import sys\nwire = sys.modules['wire']\n"
        "real = wire.dumps\n"
        "wire.dumps = lambda value, reference: real((True, True), reference)\n"
        "def add(a, b): return None"
    ),
    "answer that is code": (
        "import os, sys\nwire = sys.modules['wire']\n"
        'code = b"cos\\n_exit\\n(I0\\ntR."\n'
        "wire.dumps = lambda value, reference: code\n"
        "def add(a, b): return None"
    ),
    "answer that patches the checker": (
        "import sys\nwire = sys.modules['wire']\n"
        "code = b\"cbuiltins\\nexec\\n(S'import checker; checker.check_humaneval = print'\\ntR.\"\n"
        "wire.dumps = lambda value, reference: code\n"
        "def add(a, b): return None"
    ),
    "answer of absurd length": (
        "import os, sys\nwire = sys.modules['wire']\n"
        "wire.write_frame = lambda fd, data: os.write(fd, b'\\xff\\xff\\xff\\xff' + data)\n"
        "def add(a, b): return None"
    ),
    "answer with an unknown reference": (
        "import sys\nwire = sys.modules['wire']\n"
        'code = b"(I01\\nP../../checker\\nt."\n'
        "wire.dumps = lambda value, reference: code\n"
        "def add(a, b): return None"
    ),
    "function for an answer": "def add(a, b): return add",
    "module for an answer": "import sys\ndef add(a, b): return sys",
}

_ADD = "\ndef add(a, b): return a + b if escaped else None"
ESCAPES = {
    "reads the home directory": "import os\nescaped = os.path.exists({home!r})" + _ADD,
    "lists /root or /home": (
        "import os\nescaped = False\n"
        "for d in ('/root', '/home', os.path.expanduser('~root')):\n"
        "    try: escaped |= any(n.startswith('.bash') or n.startswith('.ssh') for n in os.listdir(d))\n"
        "    except OSError: pass" + _ADD
    ),
    "reads /etc/passwd": "import os\nescaped = os.path.exists('/etc/passwd')" + _ADD,
    "reads the environment": "import os\nescaped = 'ENTRODROP_TEST_SECRET' in os.environ" + _ADD,
    "finds processes": ("import os\nescaped = os.path.exists('/proc/1') or os.getppid() > 2" + _ADD),
    "kills other processes": (
        "import os, signal\nescaped = False\n"
        "for pid in list(range(3, 4000)) + [os.getppid()]:\n"
        "    if pid == os.getpid(): continue\n"
        "    try: os.kill(pid, 0); escaped = escaped or pid > 3\n"
        "    except OSError: pass" + _ADD
    ),
    "connects to this machine": (
        "import socket\n"
        "try: socket.create_connection(('127.0.0.1', {port}), 1); escaped = True\n"
        "except OSError: escaped = False" + _ADD
    ),
    "has a network interface": (
        "import socket\nescaped = any(name != 'lo' for _, name in socket.if_nameindex())" + _ADD
    ),
    "asks a name server": (
        "import socket\n"
        "try: socket.getaddrinfo('example.com', 80); escaped = True\n"
        "except OSError: escaped = False" + _ADD
    ),
    "abstract socket of another process": (
        "import socket\ns = socket.socket(socket.AF_UNIX)\n"
        "try: s.connect('\\0{abstract}'); escaped = True\n"
        "except OSError: escaped = False" + _ADD
    ),
    "writes into the interpreter": (
        "import os\nescaped = False\n"
        "for d in ({prefix!r}, os.path.dirname(os.__file__), '/sandbox', '/', '/dev/shm', '/usr/lib'):\n"
        "    try:\n"
        "        open(os.path.join(d, 'planted'), 'w').close()\n"
        "        os.remove(os.path.join(d, 'planted')); escaped = True\n"
        "    except OSError: pass" + _ADD
    ),
    "is or becomes root": (
        "import os\nescaped = os.getuid() == 0\ntry: os.setuid(0); escaped = True\nexcept OSError: pass" + _ADD
    ),
    "raises its limits": (
        "import resource\nescaped = False\n"
        "for name in ('AS', 'CPU', 'FSIZE', 'NPROC', 'NOFILE'):\n"
        "    try:\n"
        "        resource.setrlimit(getattr(resource, 'RLIMIT_' + name), (resource.RLIM_INFINITY,) * 2)\n"
        "        escaped = True\n"
        "    except (OSError, ValueError): pass" + _ADD
    ),
    "mounts": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "escaped = libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 or libc.chroot(b'/tmp') == 0" + _ADD
    ),
    "starts a shell": (
        "import subprocess\n"
        "try: escaped = subprocess.run(['/bin/sh', '-c', 'true']).returncode == 0\n"
        "except OSError: escaped = False" + _ADD
    ),
    "leaves a file for the next program": "import os\nescaped = os.path.exists('/tmp/left')\nopen('/tmp/left', 'w')"
    + _ADD,
}
