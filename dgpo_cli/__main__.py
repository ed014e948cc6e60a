"""`python -m dgpo_cli`, for launchers that require a module."""

from dgpo_cli.main import main

if __name__ == "__main__":
    main()
