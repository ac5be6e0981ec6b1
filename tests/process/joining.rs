//! A cluster is made by typing: one machine begins, the others come in with tokens. And tokens that let in nobody.

use std::time::Duration;

use crate::machines::{Machines, mode, refused, said};

#[test]
fn a_cluster_begins_on_one_machine_and_the_others_come_in_with_tokens() {
    let mut machines = Machines::new();
    let begun = said(&machines.init("a"));
    assert!(begun.contains("holdfast cluster token b"), "{begun}");
    let (config, secret) = (machines.config("a"), machines.home("a").join("secret"));
    said(&holdfast_tests::run(&["config", "check", config.to_str().unwrap()]));
    assert_eq!((mode(&config), mode(&secret)), (0o600, 0o600));
    let again = refused(&machines.init("a"));
    assert!(again.contains("is there already, and nothing is overwritten"), "{again}");

    machines.write_volume("a");
    machines.spawn("orchestrator", "a");
    for node in ["b", "w"] {
        let token = machines.token("a", node);
        let joined = said(&machines.join(node, &token));
        assert!(joined.contains(&format!("let this machine into made as {node}")), "{joined}");
        assert_eq!(joined.contains("holdfast create r0"), node == "b", "{joined}");
        let read = |machine, name| std::fs::read(machines.home(machine).join(name)).unwrap();
        assert_eq!(read(node, "holdfast.toml"), read("a", "holdfast.toml"));
        assert!(read(node, "secret") == read("a", "secret"), "the secret is another one");
        assert_eq!(mode(&machines.home(node).join("secret")), 0o600);

        let used = refused(&machines.join("stranger", &token));
        assert!(used.contains("the token is used up"), "{used}");
        assert!(!machines.home("stranger").join("secret").exists());
    }

    machines.start_all();
    machines.wait_primary("w", "a", 2);
    let mut client = machines.connect("a");
    client.write_at(0, &[7; 4096]).unwrap();
    client.flush().unwrap();
    machines.wait_until("b to be heard", || {
        let up = refused(&machines.cluster("a", &["token", "b"]));
        up.contains("b is in the cluster already").then_some(())
    });
}

#[test]
fn a_token_that_is_wrong_in_any_way_lets_in_nobody_and_says_why() {
    let mut machines = Machines::new();
    said(&machines.init("a"));
    machines.write_volume("a");
    machines.spawn("orchestrator", "a");
    let token = machines.token("a", "b");
    let refuses = |machines: &Machines, token: &str, why: &str| {
        let text = refused(&machines.join("b", token));
        assert!(text.contains(why), "{text}");
        let left: Vec<_> = std::fs::read_dir(machines.home("b")).into_iter().flatten().collect();
        assert!(left.is_empty(), "a file is left: {left:?}");
    };
    refuses(&machines, "0123456789abcdef", "this is no token");
    refuses(&machines, &token[..token.len() - 1], "the token is not whole");
    let nobody = refused(&machines.cluster("a", &["token", "c"]));
    assert!(nobody.contains("no node \"c\""), "{nobody}");

    let short = said(&machines.cluster("a", &["token", "b", "--valid", "1ms"]));
    let short = short.split_whitespace().find(|word| word.starts_with("hf1-")).unwrap();
    std::thread::sleep(Duration::from_millis(2));
    refuses(&machines, short, "the token has expired");

    machines.kill("orchestrator", "a");
    refuses(&machines, &token, "nobody answers at 127.0.0.1");
    machines.spawn("orchestrator", "a");
    machines.token("a", "w");
    refuses(&machines, &token, "does not know the token");

    // Another cluster at the same address.
    machines.kill("orchestrator", "a");
    std::fs::remove_dir_all(machines.home("a")).unwrap();
    said(&machines.init("a"));
    machines.write_volume("a");
    machines.spawn("orchestrator", "a");
    machines.token("a", "w");
    refuses(&machines, &token, "is not of the cluster that the token is from");
}
