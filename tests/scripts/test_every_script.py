"""Every script is run by a test, and bad input from the shell is one line and exit status 2."""

from running_scripts import SCRIPTS, run


def test_every_script_is_run_by_a_test():
    tested = {"train.py", "evaluate.py", "demo.py", "compare.py", "race.py", "vae.py"}
    papers = "beyond_gaussian bit_codes burda2016 concepts differentiable_ais disentanglement draws front_picture"
    papers += " half_images interpolation lagging_encoders missing_cells miwae2019 mixture_guides powerful_decoder"
    papers += " rainforth2018 semi_supervised sharpness tutorial_gallery tutorials vqvae"
    tested |= {f"papers/{name}.py" for name in papers.split()}
    benchmarks = "answers dais_in_numpyro gate gpu kill_test programs scaling speed"
    tested |= {f"benchmarks/{name}.py" for name in benchmarks.split()}
    assert set(SCRIPTS) == tested


def test_bad_input_exits_with_2_from_the_shell_too_before_slow_imports(tmp_path):
    result = run("evaluate.py", "nowhere", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    lines = result.stderr.splitlines()
    said = [line for line in lines if not line.startswith("import time:")]
    imports = {line.split("|")[-1].strip() for line in lines if line not in said}
    assert (result.returncode, result.stdout) == (2, "")
    assert said == ["error: run folder nowhere does not exist"]
    assert "pyrovae.cli" in imports
    assert not imports & {"torch", "pyro", "scipy", "matplotlib", "pandas"}
