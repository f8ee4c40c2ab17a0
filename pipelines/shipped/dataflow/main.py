"""What the launcher of a flex template runs."""

from scenemill.pipelines.runner_template import main

if __name__ == "__main__":
    main()
