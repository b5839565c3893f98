"""The command that starts ranks follows from the profile; nothing of SLURM is needed to see it."""

TRAIN = "-m lockstep train"
NUMBERS = "srun --kill-on-bad-exit=1 --nodes={} --ntasks={} --ntasks-per-node={} --cpus-per-task={}"


def test_srun_is_told_every_number_before_what_it_starts(workspace):
    workspace.write("config/runs.tsv", "run\tranks\tthreads\nfour\t4\t3\none\t1\t2\n")
    profile = workspace.folder / "workflow/profiles/slurm/config.yaml"
    text = profile.read_text()
    assert "mpi: srun --mpi=pmix\n" in text
    profile.write_text(text.replace("--mpi=pmix\n", "--mpi=pmix container run\n"))
    words = ["--profile", profile.parent, "--dry-run", "--printshellcmds"]
    done = workspace.snakemake(
        *words, "results/config/four/train.json", "results/config/one/train.json"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    four, one = NUMBERS.format(2, 4, 2, 3), NUMBERS.format(1, 1, 1, 2)
    assert f"{four} --mpi=pmix container run python -m mpi4py {TRAIN}" in said
    assert f"{one} --mpi=none container run python {TRAIN}" in said
