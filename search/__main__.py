import signal
import sys

if __name__ == "__main__":
    try:
        from search.cli import main

        status = main()
    except KeyboardInterrupt:  # While the command line itself was loaded; or --debug shows it.
        if "--debug" in sys.argv:
            raise
        print("stopped", file=sys.stderr)
        status = 130
    # Nothing is left to be stopped but the interpreter's own end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise SystemExit(status)
