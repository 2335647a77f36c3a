"""CI files on an installed wheel: the action with its installation, and the steps of the image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kits"))

from pipeline_kit import bash, docker_steps, run_action

SCRIPTS = Path(sys.executable).parent


def main(folder: Path, wheel: str) -> None:
    """Run the action in the project that gate.py left, then build what the image has."""
    requirement = f"{wheel}[hnswlib,report]"
    job = run_action(folder / "gate", SCRIPTS, {"new": "new.onnx", "requirement": requirement})
    assert job.codes == {"Install": 0, "Verify": 0}, job.said
    assert job.outputs["verdict"] == "pass"
    image = folder / "image"
    environment = {"REQUIREMENT": requirement, "HNSWLIB_NO_NATIVE": "1"}
    for step in docker_steps({"/opt/compatctl": str(image)}):
        if not step.startswith("useradd"):  # that one changes the machine
            done = bash(step, folder, SCRIPTS, environment)
            assert done.returncode == 0, done.stderr
    for new, code in (("new.onnx", 0), ("worse.onnx", 3)):
        command = [image / "bin" / "compatctl", "verify", new]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=folder / "gate", env=environment, check=False)
        assert done.returncode == code
    print("the action and the image: installed from the wheel, red where the gate fails")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
