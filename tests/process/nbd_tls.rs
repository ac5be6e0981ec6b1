//! NBD over TCP with TLS: foreign clients with a certificate of the cluster use a volume, all others are kept out.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use holdfast_tests::{Sandbox, run};

const IMAGE_BYTES: usize = 24 << 20;

/// A cluster whose volume is to be had over TLS, and a client's certificate.
struct Served {
    sandbox: Sandbox,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let sandbox = Sandbox::start(&["--size", "64M", "--journal-size", "64M", "--tcp", "--tls"]);
        let folder = tempfile::tempdir().unwrap();
        let config = std::fs::read_to_string(sandbox.config()).unwrap();
        let listen = config.split("nbd-listen = \"").nth(1).and_then(|rest| rest.split('"').next());
        let address = listen.unwrap().parse().unwrap();
        let served = Self { sandbox, address, folder };
        served.issue("client", &served.sandbox.config());
        served
    }

    /// Has a certificate made; says in which folder.
    fn issue(&self, name: &str, config: &std::path::Path) -> PathBuf {
        let folder = self.folder.path().join(name);
        let made = run(&[
            "client-certificate",
            name,
            folder.to_str().unwrap(),
            "--config",
            config.to_str().unwrap(),
        ]);
        assert!(made.status.success(), "{made:?}");
        folder
    }

    fn uri(&self, scheme: &str, certificates: &str) -> String {
        let folder = self.folder.path().join(certificates);
        format!("{scheme}://{}/r0?tls-certificates={}", self.address, folder.display())
    }
}

fn call(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[test]
fn clients_with_a_certificate_use_the_volume_and_no_others() {
    let served = Served::start();
    let uri = served.uri("nbds", "client");
    let (image, back) = (served.folder.path().join("image"), served.folder.path().join("back"));
    let bytes: Vec<u8> =
        (0..IMAGE_BYTES as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(&image, &bytes).unwrap();

    let copied = call("nbdcopy", &["--flush", image.to_str().unwrap(), &uri]);
    assert!(copied.status.success(), "{copied:?}");
    let copied = call("nbdcopy", &[&uri, back.to_str().unwrap()]);
    assert!(copied.status.success(), "{copied:?}");
    assert!(std::fs::read(&back).unwrap()[..IMAGE_BYTES] == bytes, "what comes back is what went in");

    // qemu has its own client, but the same certificates.
    let credentials =
        format!("tls-creds-x509,id=t,endpoint=client,dir={}", served.folder.path().join("client").display());
    let options = format!(
        "driver=nbd,host={},port={},export=r0,tls-creds=t",
        served.address.ip(),
        served.address.port()
    );
    let info = call("qemu-img", &["info", "--object", &credentials, "--image-opts", &options]);
    assert!(String::from_utf8_lossy(&info.stdout).contains("64 MiB"), "{info:?}");

    refuse_others(&served);
    assert!(call("nbdinfo", &["--size", &uri]).status.success(), "nobody was disturbed");
    let disks = served.sandbox.stop_and_read_disks(0);
    assert!(disks[0] == disks[1] && disks[0][..IMAGE_BYTES] == bytes);
}

fn refuse_others(served: &Served) {
    // In the clear nothing is told.
    let plain = call("nbdinfo", &["--list", &served.uri("nbd", "client")]);
    assert!(!plain.status.success() && !String::from_utf8_lossy(&plain.stdout).contains("r0"), "{plain:?}");
    // Another cluster's certificate, also with our authority beside it.
    let other = Sandbox::start(&["--size", "16M", "--journal-size", "32M"]);
    let folder = served.issue("other", &other.config());
    let refused = call("nbdinfo", &["--size", &served.uri("nbds", "other")]);
    assert!(!refused.status.success(), "{refused:?}");
    std::fs::copy(served.folder.path().join("client/ca-cert.pem"), folder.join("ca-cert.pem")).unwrap();
    let refused = call("nbdinfo", &["--size", &served.uri("nbds", "other")]);
    assert!(!refused.status.success(), "{refused:?}");
    // No certificate at all.
    let bare = served.folder.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::copy(folder.join("ca-cert.pem"), bare.join("ca-cert.pem")).unwrap();
    let refused = call("nbdinfo", &["--size", &served.uri("nbds", "bare")]);
    assert!(!refused.status.success(), "{refused:?}");
    let log = served.sandbox.log(0);
    assert!(log.contains("an NBD connection is closed: it does not know the cluster's secret"), "{log}");
}

#[test]
fn what_is_said_in_the_clear_behind_starttls_is_not_heard() {
    let served = Served::start();
    let mut stream = TcpStream::connect(served.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    let option = |number: u32| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &0u32.to_be_bytes()].concat();
    // The client's flags, NBD_OPT_STARTTLS, NBD_OPT_LIST, all at once.
    stream.write_all(&[&3u32.to_be_bytes()[..], &option(5), &option(3)].concat()).unwrap();
    let mut heard = Vec::new();
    // The end may come as a reset: something was sent that nobody read.
    let _ = stream.read_to_end(&mut heard);
    assert!(heard.len() <= 20, "no more than the answer to NBD_OPT_STARTTLS: {heard:?}");
    assert!(!heard.windows(2).any(|pair| pair == b"r0"));
}
