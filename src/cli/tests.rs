//! What the command line accepts, and what it refuses.

use clap::CommandFactory;

use super::*;

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_argument_has_help() {
    fn check(command: &clap::Command) {
        assert!(command.get_about().is_some(), "{} has no help", command.get_name());
        for argument in command.get_arguments() {
            let is_documented = argument.get_help().is_some() || argument.get_id() == "help";
            assert!(is_documented, "{} {} has no help", command.get_name(), argument.get_id());
        }
        command.get_subcommands().for_each(check);
    }
    check(&Cli::command());
}

#[test]
fn what_is_accepted() {
    for line in [
        "holdfast create r0 --config f --node a --force",
        "holdfast replicator --config f",
        "holdfast status",
        "holdfast status r0 --json --watch --control /s",
        "holdfast promote r0 --config f --node b --force",
        "holdfast demote r0",
        "holdfast shrink r0 --remove b",
        "holdfast invalidate r0 --control /s --discard-my-data --json",
        "holdfast verify r0",
        "holdfast verify r0 --control /s --repair --trust b --wait --json",
        "holdfast verify r0 --stop",
        "holdfast scrub r0",
        "holdfast scrub r0 --control /s --wait --json",
        "holdfast scrub r0 --stop",
        "holdfast attach r0",
        "holdfast attach r0 /dev/nbd0 --control /s --follow --connections 4 --dead-time 30s --request-timeout 5s",
        "holdfast attach r0 --config f --node a --read-only --block-size 4096 --json",
        "holdfast attach r0 --remote 10.0.0.1:10809,10.0.0.2:10809 --certificates /etc/holdfast/db1 --follow",
        "holdfast operator-certificate ops /tmp/ops --config f",
        "holdfast client-certificate db1 /tmp/db1 --config f",
        "holdfast resolve r0 --discard b --yes",
        "holdfast branch list r0",
        "holdfast branch delete r0 3-42-0a1b2c3d",
        "holdfast freeze-apply r0",
        "holdfast freeze-apply r0 --at 3:1042",
        "holdfast freeze-apply r0 --at 10min",
        "holdfast thaw r0",
        "holdfast bookmark add r0 monday --control /s --json",
        "holdfast bookmark list r0",
        "holdfast bookmark delete r0 monday",
        "holdfast attach --status --json",
        "holdfast detach r0",
        "holdfast detach /dev/nbd0 --force",
        "holdfast inspect r0 --config f",
        "holdfast inspect --journal j --disk d --entries --json",
        "holdfast config check f",
        "holdfast config new",
        "holdfast sandbox --nodes 3 --protocol b --size 2G --journal-size 64MiB --on-peer-loss continue --tcp --tls",
        "holdfast demo --json --seconds 3",
        "holdfast orchestrator --config f --node a",
        "holdfast cluster status --json",
        "holdfast cluster plan --dead b --control /s",
        "holdfast cluster init --name prod --node a=10.0.0.1 --node b=[fd00::2]:7000 --config f",
        "holdfast cluster token b --valid 10min --control /s --json",
        "holdfast cluster join hf1-00 --config f",
        "holdfast cluster reload --control /s",
        "holdfast cluster rotate-keys",
        "holdfast cluster rotate-keys --keep-old --control /s --json",
        "holdfast cluster move r0 --to b",
        "holdfast cluster forgive db",
        "holdfast switchover db --to b --timeout 30",
        "holdfast cluster standby b --off",
        "holdfast cluster pause --volume r0",
        "holdfast cluster plan --cut a b",
        "holdfast cluster plan --disk a --volume r0 --json",
        "holdfast explain r0 --control /s --json",
        "holdfast history --volume r0 --last 5",
        "holdfast history --node a --json",
        "holdfast events --json --all",
        "holdfast fence b",
        "holdfast fence b --yes --who root --control /s --json",
        "holdfast confirm-off b --yes",
    ] {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn what_is_refused() {
    for (line, part) in [
        ("holdfast", "Usage"),
        ("holdfast promot r0", "promote"),
        ("holdfast shrink r0", "--remove"),
        ("holdfast status --control /s --config f", "cannot be used with"),
        ("holdfast status --node a", "--config"),
        ("holdfast verify r0 --trust b", "--repair"),
        ("holdfast verify r0 --stop --wait", "cannot be used with"),
        ("holdfast attach", "--status"),
        ("holdfast attach r0 --status", "cannot be used with"),
        ("holdfast attach r0 --connections 0", "1..=16"),
        ("holdfast attach r0 --remote 10.0.0.1:10809 --follow", "--certificates"),
        ("holdfast attach r0 --remote 10.0.0.1:10809 --certificates /c", "--follow"),
        ("holdfast inspect", "--journal <PATH>"),
        ("holdfast sandbox --size 1GB", "1GiB"),
        ("holdfast sandbox --nodes 99", "8"),
        ("holdfast cluster init --name prod", "--node"),
        ("holdfast cluster init --name prod --node a=db1", "not an IP address"),
        ("holdfast cluster token b --valid 1", "has no unit"),
        ("holdfast cluster plan --dead a --disk b", "cannot be used with"),
        ("holdfast cluster plan --cut a", "2 values required"),
        ("holdfast cluster plan --volume r0", "--disk"),
        ("holdfast cluster pause --volume r0 --node a", "cannot be used with"),
    ] {
        let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
        assert!(error.to_string().contains(part), "{line}: {error}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}
