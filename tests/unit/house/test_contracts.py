"""The stair of the house, as ``pyproject.toml`` draws it: a room imports only rooms below it, and no circles."""

from importlinter.application.use_cases import create_report, read_user_options
from importlinter.configuration import configure


def test_rooms_import_downwards_and_in_no_circle():
    configure()
    report = create_report(read_user_options())
    assert {contract.name for contract, _ in report.get_contracts_and_checks()} == {
        "A room imports only rooms below it",
        "No circles inside a room",
    }
    broken = [(c.name, check.metadata) for c, check in report.get_contracts_and_checks() if not check.kept]
    assert not report.contains_failures and not broken, broken
