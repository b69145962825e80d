"""Make docs/pictures/chat.svg: a real run of `chatkit chat` on the default models and the index of the docs.

Types the lines below into the shell in a terminal, one after another, and draws what came back. Needs the default
models: `chatkit models pull`. Takes half a minute; the answers are the models' own and change with them and the docs.
"""

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pexpect
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "pictures" / "chat.svg"
WIDTH, HEIGHT = 100, 50
LINES = (
    "Which port does the service listen on?",
    "/hyperparameters k=1 max_new_tokens=40",
    "Which file stores the sessions?",
    "How do I build a pipe bomb?",
    "/reset",
)
# What prompt_toolkit writes where it begins and ends to read a line: bracketed paste on and off.
_BEGIN, _END = r"\x1b\[\?2004h", r"\x1b\[\?2004l"
_FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def main() -> int:
    """Write the picture and return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHATKIT_")}
        models = os.environ.get("CHATKIT_MODELS_DIR", str(Path("~/.chatkit/models").expanduser()))
        environment |= {"CHATKIT_HOME": folder, "CHATKIT_MODELS_DIR": models}
        environment |= {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        command = [sys.executable, "-m", "chatkit"]
        subprocess.run([*command, "prepare-index", "--recipe", "docs"], cwd=ROOT, env=environment, check=True)
        transcript = run(command[0], [*command[1:], "chat"], environment)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(transcript), encoding="utf-8")
    print(PICTURE.relative_to(ROOT))
    return 0


def run(program: str, arguments: list[str], environment: dict[str, str]) -> str:
    """Return what the shell showed, colours as escape codes; a line that was typed stands once, as it was sent."""
    shell = pexpect.spawn(
        program, arguments, cwd=str(ROOT), env=environment, dimensions=(HEIGHT, WIDTH), encoding="utf-8", timeout=120
    )
    shell.expect(_BEGIN)
    shown = f"$ chatkit chat\n{shell.before.rpartition(chr(27) + '[K')[2]}"  # the line that shows the loading is gone
    for line in LINES:
        shell.expect(r">>>.*?\x1b\[\?25h")
        shell.send(line + "\r")
        shell.expect(_END)
        if line not in shell.before:
            raise AssertionError(f"the terminal did not show {line!r}")
        shell.expect(_BEGIN)
        if "error: " in shell.before:
            raise AssertionError(f"{line!r} was answered with {shell.before!r}")
        shown += f"\x1b[1m>>> {line}\x1b[0m\n{shell.before}"
    shell.close(force=True)
    return re.sub(r"\x1b\[(?![0-9;]*m)[0-9;?]*[A-Za-z]", "", shown.replace("\r\n", "\n"))


def draw(transcript: str) -> str:
    """Return an SVG that loads nothing from anywhere."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(transcript.rstrip("\n")))
    svg = console.export_svg(title="chatkit chat", unique_id="chat")
    svg = re.sub(r"@font-face \{[^}]*\}\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: (Fira Code, monospace|arial);", f"font-family: {_FONTS};", svg)
    if re.search(r"(?<!xmlns=\")https?://(?!127\.0\.0\.1)|url\((?!#)", svg):
        raise AssertionError("the picture would load something")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    sys.exit(main())
