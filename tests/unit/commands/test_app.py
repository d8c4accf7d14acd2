"""What the entry point does with a command line before and after the command."""

from lrmil_cli.app import expanded


def test_patterns_are_expanded_where_the_shell_does_not(tmp_path):
    for name in ("b.svs", "a.svs", "c[1].svs", "d.txt"):
        (tmp_path / name).touch()
    args = ["tile", f"{tmp_path}/*.svs", f"{tmp_path}/*.ndpi", f"{tmp_path}/c[1].svs", "-o", "out"]
    names = [f"{tmp_path}/{name}" for name in ("a.svs", "b.svs", "c[1].svs")]
    assert expanded(args, windows=True) == ["tile", *names, f"{tmp_path}/*.ndpi", f"{tmp_path}/c[1].svs", "-o", "out"]
    assert expanded(args, windows=False) == args
