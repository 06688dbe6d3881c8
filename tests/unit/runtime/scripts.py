"""Scripts that touch what a launcher could change: what each is about, and its text."""

from __future__ import annotations

SCRIPTS = {
    "its names": """
        import sys, types
        main = sys.modules["__main__"]
        assert main.__dict__ is globals()
        assert isinstance(__builtins__, types.ModuleType)
        print({name: value for name, value in globals().items() if name not in ("__builtins__", "main")})
        print(__loader__.name, __loader__.path, __loader__.get_data(__file__)[:20])
    """,
    "its documentation": '''
        """What it does."""
        print(__doc__)
    ''',
    "arguments and path": """
        import sys
        print(sys.argv, sys.path[0], sys.flags, sys._xoptions, __debug__, sys.warnoptions)
        print(sys.path[1:3], sys.getrecursionlimit())
    """,
    "nothing": "",
    "only a comment": "# nothing",
    "an old coding": "# -*- coding: latin-1 -*-\nprint('ok')\n",
    "a byte order mark": "\ufeffprint('ok')\n",
    "no future of the launcher's": "def f(x: undefined_name): pass\n",
    "a future of its own": """
        from __future__ import annotations
        def f(x: undefined_name): pass
        print(f.__annotations__)
    """,
    "its standard input": "print(input()[::-1])\n",
    # How it ends.
    "exit": "import sys; sys.exit()\n",
    "exit with a status": "import sys; sys.exit(3)\n",
    "exit with a text": "import sys; sys.exit('that was it')\n",
    "exit in a function": "def stop(): raise SystemExit(4)\nstop()\n",
    "exit with something to do": "import atexit, sys\natexit.register(print, 'bye')\nsys.exit(5)\n",
    "exit at once": "import os; os._exit(6)\n",
    "an interrupt": "raise KeyboardInterrupt\n",
    "an interrupt by the signal": """
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
    """,
    "an end by a signal": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n",
    "a signal's handler": """
        import os, signal
        signal.signal(signal.SIGUSR1, lambda number, frame: print(number, frame.f_code.co_name))
        os.kill(os.getpid(), signal.SIGUSR1)
    """,
    "an object that goes at the end": """
        import os
        class Last:
            def __del__(self): os.write(1, b"gone\\n")
        last = Last()
        cycle = [Last()]; cycle.append(cycle)
    """,
    "a thread that outlives it": """
        import sys, threading
        go = threading.Event()
        def f():
            threading.main_thread().join()
            print("after", __name__, sys.modules["__main__"].go is go)
        threading.Thread(target=f).start()
    """,
    # How it fails.
    "an exception of an exception": """
        def inner(n):
            raise ValueError("größe") if n == 0 else inner(n - 1)
        def outer():
            try:
                inner(2)
            except ValueError as error:
                raise RuntimeError("again") from error
        outer()
    """,
    "an exception at its first level": "1 / 0\n",
    "an exception after too deep a recursion": """
        def f(): f()
        try:
            f()
        except RecursionError:
            pass
        raise OSError(2, "x")
    """,
    "an exception that is none of Exception": "class Odd(BaseException): pass\nraise Odd('odd')\n",
    "a mistake in its syntax": "def (:\n    pass\n",
    "a mistake in its indentation": "if True:\n        a = 1\n    b = 2\n",
    "a hook for exceptions": """
        import sys, traceback
        def hook(kind, error, trace):
            print(kind, error, [frame.name for frame in traceback.extract_tb(trace)], trace is error.__traceback__)
            print(sys.last_traceback is trace)
        sys.excepthook = hook
        def f(): raise ValueError("v")
        f()
    """,
    "an exception at exit": """
        import atexit
        def last(): raise ValueError("last")
        atexit.register(last)
    """,
    "an exception in a thread": """
        import threading
        def f(): raise ValueError("in a thread")
        thread = threading.Thread(target=f, name="worker")
        thread.start(); thread.join()
        print(threading.current_thread() is threading.main_thread())
    """,
    "an exception in an event loop": """
        import asyncio
        async def f():
            await asyncio.sleep(0)
            raise ValueError("awaited")
        asyncio.run(f())
    """,
    "an exception in a forked child": """
        import os, sys
        if os.fork() == 0:
            raise ValueError("in the child")
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        if os.fork() == 0:
            sys.exit(9)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """,
    "a warning": "import warnings\ndef f(): warnings.warn('careful', stacklevel=2)\nf()\n",
    # Who looks at __main__.
    "a class with annotations": """
        import dataclasses, typing
        @dataclasses.dataclass
        class Point:
            x: int
            y: "list[Point]"
        print(Point(1, []), typing.get_type_hints(Point), Point.__module__)
    """,
    "its own source": """
        import inspect, sys
        def f(): return 1  # seen
        print(inspect.getsource(f), inspect.getmodule(f) is sys.modules["__main__"])
        print(inspect.getsourcefile(f) == __file__)
    """,
    "a unit test": """
        import unittest
        class Case(unittest.TestCase):
            def test_one(self): self.assertEqual(1, 1)
        print(unittest.defaultTestLoader.loadTestsFromName("__main__"))
    """,
    "a doctest": '''
        def f():
            """
            >>> f()
            2
            """
            return 1
        import doctest
        print(doctest.testmod())
    ''',
    "pickles": """
        import pickle
        class Thing: pass
        def function(): return 7
        print(type(pickle.loads(pickle.dumps(Thing()))) is Thing, pickle.loads(pickle.dumps(function))())
        print(pickle.dumps(function, 0))
    """,
}

# A pool of processes, by each way to start them: a class and a function of __main__ go there and back.
POOL = """
    import multiprocessing, os, sys
    class Thing:
        def __init__(self, n): self.n = n
        def __eq__(self, other): return type(self) is type(other) and self.n == other.n
    def double(thing):
        assert isinstance(thing, Thing)
        if thing.n == 3:
            raise ValueError(f"{thing.n} in {__name__}")
        return Thing(thing.n * 2), __name__, os.path.basename(sys.argv[0]), sys.path[0], "__spec__" in globals()
    if __name__ == "__main__":
        context = multiprocessing.get_context("METHOD")
        with context.Pool(1) as pool:
            for n in 1, 2, 3:
                thing, *rest = pool.apply(double, (Thing(n),))
                print(thing == Thing(n * 2), rest)
"""
METHODS = ("fork", "spawn", "forkserver")
POOLS = {method: POOL.replace("METHOD", method) for method in METHODS}
SCRIPTS.update({f"processes by {method}": text for method, text in POOLS.items()})
