"""`python -m punie_mlx`."""

from punie_mlx.cli import main

if __name__ == "__main__":
    main()
