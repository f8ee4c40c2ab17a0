"""What the launcher of a flex template runs."""

from scenemill.pipelines.runners.template import main

if __name__ == "__main__":
    main()
