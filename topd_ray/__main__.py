"""`python -m topd_ray` is `topd`."""

from topd_ray.cli import main

if __name__ == "__main__":
    main()
