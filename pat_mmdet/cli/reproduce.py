"""Trains the cells of a table of results, and collects what they came to.

A cell is PAIR/METHOD, as swin_t-res18/pat, and trains in WORK_DIR/TABLE/SETTINGS/CELL/seed_S. What
is done is skipped and what was interrupted is resumed, so the same command can be given again at
any time. Teachers are trained once, with seed 0, in WORK_DIR/TABLE/teacher/PAIR/seed_0.

Examples:
    python tools/reproduce.py --list --table coco
    python tools/reproduce.py --table digits --cells '*/none' '*/pat' --seeds 0 1
    python tools/reproduce.py --table digits --collect
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import torch
from mmengine.config import Config

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.utils import RunDir, load_config, read_record, write_atomic, write_record
from pat_mmdet.utils.config import SETTINGS
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.paths import CONFIGS, TOOLS
from pat_mmdet.utils.runs import cores, hardware, lock_folder, revision, versions
from pat_mmdet.utils.tables import TABLES, Cell, Row, Table, find_table

# Options that a teacher, which is a plain detector, has no place for.
STUDENT_ONLY = ("model.student.", "model.method.", "model.teacher")
LIBC = ctypes.CDLL(None)


@dataclass
class Job:
    """A training of a table.

    Attributes:
        title (str): Its name in messages.
        cfg (Config): Its config, options applied.
        training (RunDir): Its work dir and length.
        command (list[str]): What runs it, or goes on with it.
        record (dict): What decides its result, for ``run.json``.
        teacher (RunDir, optional): A training that must be done before.
        process (subprocess.Popen, optional): The training, once started.
        lock (IO, optional): Held while it trains.
    """

    title: str
    cfg: Config
    training: RunDir
    command: list[str]
    record: dict
    teacher: RunDir | None = None
    process: subprocess.Popen | None = None
    lock: IO | None = None

    @property
    def line(self) -> str:
        """str: The command for people and shells."""
        return shlex.join(self.command)

    def check_folder(self) -> None:
        """Checks that the folder holds no training with other settings.

        Raises:
            ValueError: If it does; the two must not be mixed.
        """
        before = read_record(self.training.folder)
        for key, value in self.record.items():
            if before and before.get(key) != value:
                raise ValueError(
                    f"{self.training.folder} holds a training with {key} {before.get(key)}, not "
                    f"{value}; give the same options or another --work-dir, or remove that folder"
                )

    def start(self, args: argparse.Namespace) -> str | None:
        """Starts the training; gives a reason instead when there is nothing to start."""
        if self.teacher is not None and not self.teacher.is_finished():
            return "left out, its teacher is not done"
        folder = self.training.folder
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(folder)
        if self.lock is None:
            return "skipped, another process is training it"
        if self.training.is_finished():
            self.lock.close()
            return "done already"
        command = self.line
        note = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command,
            "revision": revision(),
            "hardware": hardware(args.gpus, args.partition),
            "jobs": args.jobs,
            "versions": versions(),
            "exit_code": None,
        }
        starts = [*read_record(folder).get("starts", []), note]
        write_record(folder, {**self.record, "starts": starts})
        environment = {"PORT": free_port(), "MASTER_PORT": free_port(), **os.environ}
        environment["PYTHON"] = sys.executable
        if args.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // args.jobs)))
        program, *rest = shlex.split(command)
        output = open(folder / "output.log", "a") if args.jobs > 1 else None  # noqa: SIM115
        print(f"[reproduce] {self.title}: training, logs in {folder}", flush=True)
        # A training on its own leaves the lock to this process: data loaders may outlive it.
        inherited = [] if args.launcher == "none" else [self.lock.fileno()]
        self.process = subprocess.Popen(
            [sys.executable if program == "python" else program, *rest],
            env=environment, stdout=output, stderr=output, pass_fds=inherited,
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        return None

    def kill(self, number: int) -> None:
        """Sends a signal to the training and its data loaders."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def failure(self) -> str | None:
        """Notes how the training ended; gives what to tell if it is not done."""
        folder, code = self.training.folder, self.process.returncode
        self.kill(signal.SIGKILL)  # what a crash may have left of it
        record = read_record(folder)
        record["starts"][-1]["exit_code"] = code
        write_record(folder, record)
        self.lock.close()
        if code == 0 and self.training.is_finished():
            return None
        logs = [*sorted(folder.glob("*/*.log")), *folder.glob("output.log")]
        return f"{self.title} (exit code {code}): see {logs[-1] if logs else 'the output above'}"


def end_with_parent() -> None:
    """Has the kernel end this process when its parent is killed."""
    LIBC.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def free_port() -> str:
    """A port where the processes of a training can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@cache
def read_config(cell: Cell, settings: str, options: tuple[str, ...]) -> Config:
    """Reads the config of a cell as tools/train.py does, with options of the command line."""
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    given = parser.parse_args(["--cfg-options", *options] if options else []).cfg_options
    path = str(CONFIGS / cell.config)
    return load_config(path, given, *(() if cell.is_teacher else (cell.method, settings)))


def folder_of(base: Path, cell: Cell, settings: str) -> Path:
    """The folder of a cell, which has one for each seed."""
    return base / "teacher" / cell.pair if cell.is_teacher else base / settings / cell.name


def make_job(table: Table, cell: Cell, seed: int, args: argparse.Namespace) -> Job:
    """Puts together what trains a cell.

    Raises:
        FileNotFoundError: If its config does not exist.
        ValueError: If the batch cannot be divided among the GPUs.
    """
    given = list(args.cfg_options)
    if cell.is_teacher:
        given = [option for option in given if not option.startswith(STUDENT_ONLY)]
    elif args.teacher_checkpoint and cell.method != "none":
        given.insert(0, f"model.teacher_checkpoint={args.teacher_checkpoint}")
    cfg = read_config(cell, args.settings, tuple(given))
    folder = folder_of(Path(args.work_dir, table.name), cell, args.settings) / f"seed_{seed}"
    training = RunDir.from_config(folder, cfg)

    options, teacher = [f"randomness.seed={seed}"], None
    if table.teacher_of(cell) and not args.teacher_checkpoint:
        teacher = make_job(table, table.teacher_of(cell), 0, args).training
        options.append(f"model.teacher_checkpoint={teacher.checkpoint}")
    if args.gpus > 1 and not any(key.startswith("train_dataloader.batch_size=") for key in given):
        batch = cfg.get("auto_scale_lr", {}).get("base_batch_size")
        if batch is None or batch % args.gpus:
            raise ValueError(
                f"the batch of {cell.config} (auto_scale_lr.base_batch_size {batch}) cannot be "
                f"divided among {args.gpus} GPUs; take another number, or give "
                "--cfg-options train_dataloader.batch_size=..."
            )
        options.append(f"train_dataloader.batch_size={batch // args.gpus}")

    config, tools = os.path.relpath(CONFIGS / cell.config), os.path.relpath(TOOLS)
    name = f"{table.name}-{cell.pair}-{cell.method}-{seed}"
    command = {
        "none": ["python", f"{tools}/train.py", config, "--work-dir"],
        "pytorch": ["bash", f"{tools}/dist_train.sh", config, str(args.gpus), "--work-dir"],
        "slurm": ["env", f"GPUS={args.gpus}", "bash", f"{tools}/slurm_train.sh", args.partition,
                  name, config],
    }[args.launcher] + [str(folder)]  # fmt: skip
    if not cell.is_teacher:
        command += ["--method", cell.method]
        command += ["--settings", "published"] if args.settings == "published" else []
    record = {
        "table": table.name,
        "cell": cell.name,
        "config": cell.config,
        "settings": None if cell.is_teacher else args.settings,
        "seed": seed,
        "options": given,
        "length": [training.steps, training.unit],
    }
    command += ["--resume", "--cfg-options", *options, *given]
    return Job(f"{table.name} {cell.name} seed {seed}", cfg, training, command, record, teacher)


def plan(table: Table, args: argparse.Namespace) -> list[Job]:
    """The trainings that are asked for; first, those of the teachers that they need."""
    cells = table.select(args.cells)
    needed = [] if args.teacher_checkpoint else [table.teacher_of(cell) for cell in cells]
    teachers = [cell for cell in table.cells if cell.is_teacher and cell in [*cells, *needed]]
    students = [cell for cell in cells if not cell.is_teacher]
    return [
        *(make_job(table, cell, 0, args) for cell in teachers),
        *(
            make_job(table, cell, seed, args)
            for cell in students
            for seed in sorted(set(args.seeds))
        ),
    ]


def check_machine(args: argparse.Namespace) -> None:
    """Checks that this machine can launch the trainings.

    Raises:
        ValueError: If it cannot.
    """
    if args.launcher == "slurm" and shutil.which("srun") is None:
        raise ValueError("--launcher slurm needs srun, which is not in PATH; use a login node")
    found = torch.cuda.device_count()
    if args.launcher == "pytorch" and 0 < found < args.gpus:
        raise ValueError(f"--gpus {args.gpus}, but there are only {found} here")


def check_data(table: Table, cfg: Config, work_dir: Path) -> None:
    """Checks that the data of a table are there; makes those that can be generated.

    Raises:
        FileNotFoundError: If they are not, and cannot be.
    """
    datasets = [cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]
    files = [Path(item.get("data_root", ""), item.get("ann_file", "")) for item in datasets]
    work_dir.mkdir(parents=True, exist_ok=True)
    # Two calls must not generate at once.
    with lock_folder(work_dir, wait=True):
        missing = [file for file in files if not file.exists()]
        if missing and not table.generator:
            raise FileNotFoundError(f"{missing[0]} does not exist; to get the data, {table.data}")
        if missing:
            tool, *flags = table.generator
            command = [sys.executable, str(TOOLS / tool), cfg.data_root, *flags]
            if subprocess.run(command, check=False).returncode:
                sys.exit("[reproduce] the data could not be made, see above")


def train(jobs: list[Job], args: argparse.Namespace) -> list[str]:
    """Runs trainings, ``args.jobs`` at a time; gives a line for each that failed."""
    waiting, running, failures = list(jobs), [], []
    try:
        while waiting or running:
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                failures += filter(None, [job.failure()])
            for job in list(waiting):
                ahead = [other.training for other in (*waiting, *running)]
                if len(running) < args.jobs and job.teacher not in ahead:
                    waiting.remove(job)
                    reason = job.start(args)
                    if reason is None:
                        running.append(job)
                    else:
                        print(f"[reproduce] {job.title}: {reason}", flush=True)
            time.sleep(0.2 if running else 0)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("[reproduce] stopped; give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    finally:
        for job in running:
            job.kill(signal.SIGTERM)
        for job in running:
            with suppress(subprocess.TimeoutExpired):
                job.process.wait(timeout=60)
            job.kill(signal.SIGKILL)
    return failures


def show_list(tables: list[Table], args: argparse.Namespace) -> None:
    """Prints the cells of tables, what was published for each, and the commands."""
    for table in tables:
        cells = {cell.name: cell for cell in table.cells}
        print(f"# {table.name}: {table.title}")
        for job in plan(table, args):
            numbers = cells[job.record["cell"]].published_text or "none"
            print(f"\n{job.record['cell']}, seed {job.record['seed']}; published: {numbers}")
            print(f"    {job.line}")
        print()


def read_row(table: Table, cell: Cell, settings: str, folder: Path) -> Row:
    """Reads all seeds of a cell."""
    row = Row(cell, "" if cell.is_teacher else settings)
    found = (path.name.partition("_")[2] for path in folder.glob("seed_*"))
    for seed in sorted(int(name) for name in found if name.isdigit()):
        record = read_record(folder / f"seed_{seed}")
        if record:
            training = RunDir(folder / f"seed_{seed}", *record["length"])
        else:
            # Trained by hand, with a command of the list.
            training = RunDir.from_config(folder / f"seed_{seed}", read_config(cell, settings, ()))
        row.add(seed, training, record, table.metrics[0].key)
    return row


def collect(table: Table, work_dir: Path) -> None:
    """Writes the table of what is done, as Markdown and CSV."""
    base = work_dir / table.name
    used = [name for name in SETTINGS if name == "equal" or (base / name).is_dir()]
    rows = [
        read_row(table, cell, settings, folder_of(base, cell, settings))
        for settings in used
        for cell in table.cells
        if settings == "equal" or not cell.is_teacher
    ]
    work_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(work_dir / f"{table.name}.csv", table.csv(rows))
    write_atomic(work_dir / f"{table.name}.md", table.markdown(rows))
    print(table.markdown(rows))
    print(f"[reproduce] written: {work_dir / table.name}.md and .csv")


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="show cells, published numbers and commands")
    add("--collect", action="store_true", help="write WORK_DIR/TABLE.md and .csv")
    add("--table", help=f"one of: {', '.join(TABLES)}")
    add("--cells", nargs="+", default=["*"], metavar="PATTERN", help="as 'swin_t-res18/*' '*/pat'")
    add("--seeds", nargs="+", type=int, default=[0])
    add(
        "--settings",
        choices=list(SETTINGS),
        default="equal",
        help="those of all, or of each method",
    )
    add("--teacher-checkpoint", help="path or URL, in place of the teacher's cell or the config's")
    add("--launcher", choices=["none", "pytorch", "slurm"], default="none")
    add("--gpus", type=int, default=1, help="of each training; the effective batch stays the same")
    add("--partition", help="of Slurm")
    add("--work-dir", default="work_dirs/reproduce")
    add("--jobs", type=int, default=1, help="trainings at a time")
    add("--cfg-options", nargs="+", default=[], help="settings of all trainings, as of train.py")
    return parser.parse_args()


def check_arguments(args: argparse.Namespace) -> None:
    """Checks what argparse does not.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If arguments are wrong or do not fit together.
    """
    for option in args.cfg_options:
        if "=" not in option:
            raise ValueError(f"--cfg-options takes key=value, not {option!r}")
    if min(args.gpus, args.jobs) < 1 or min(args.seeds) < 0:
        raise ValueError("--gpus and --jobs must be at least 1, --seeds at least 0")
    if args.launcher == "none" and args.gpus > 1:
        raise ValueError("--gpus needs --launcher pytorch or slurm")
    if (args.launcher == "slurm") != (args.partition is not None):
        raise ValueError("--launcher slurm and --partition need each other")
    if args.launcher == "pytorch" and args.jobs > 1:
        raise ValueError("--jobs needs --launcher none or slurm; pytorch gives all GPUs to one job")
    checkpoint = args.teacher_checkpoint
    if checkpoint and "://" not in checkpoint and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"--teacher-checkpoint {checkpoint!r} does not exist")
    if args.table is None and not args.list:
        raise ValueError(f"--table is needed; known tables: {', '.join(TABLES)}")


def interrupt(*_: object) -> None:
    """Ends like Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Does what the command line says."""
    args = parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, interrupt)
    with clear_errors():
        check_arguments(args)
        tables = [find_table(args.table)] if args.table else list(TABLES.values())
        if args.list:
            show_list(tables, args)
            return
        table, work_dir = tables[0], Path(args.work_dir)
        if args.collect:
            collect(table, work_dir)
            return
        check_machine(args)
        jobs = plan(table, args)
        for job in jobs:
            job.check_folder()
        check_data(table, jobs[0].cfg, work_dir)
        failures = train(jobs, args)
    if failures:
        sys.exit("\n".join(["[reproduce] failed; give the command again to try again:", *failures]))


if __name__ == "__main__":
    main()
