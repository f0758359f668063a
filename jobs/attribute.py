"""The main job, as `ray job submit` starts it:

    ray job submit --working-dir . -- python jobs/attribute.py jobs/classifier.yaml --set output=s3://bucket/runs/a

The arguments are those of `datainf run`, and so are the exit statuses.
"""

from __future__ import annotations

import sys

from datainf_ray.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["run"]
    main()
