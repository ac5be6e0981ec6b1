//! `holdfast client-certificate` and `holdfast operator-certificate`: what lets a machine outside the cluster in, over NBD
//! with TLS, or to the orchestrators.

use anyhow::{Context, Result};
use replicator::client_identity::{Authority, ClientFiles};
use replicator::config::{OptionsError, WithSecret};

use crate::cli::ClientCertificateArgs;
use crate::output::print;
use crate::target;

/// Makes a certificate for an NBD client and says how to use it.
pub(crate) fn run(arguments: &ClientCertificateArgs) -> Result<()> {
    write(arguments, Authority::NbdClients)?;
    print(&format!(
        "{} has the certificate of {}: copy it to that machine, and use the volume as\n\
         nbds://HOST:PORT/VOLUME?tls-certificates=FOLDER",
        arguments.folder.display(),
        arguments.name
    ))
}

/// Makes one for an operator.
pub(crate) fn run_operator(arguments: &ClientCertificateArgs) -> Result<()> {
    write(arguments, Authority::Operators)?;
    print(&format!(
        "{} has the certificate of {}: copy it to that machine, and ask the orchestrators as\n\
         curl --cacert ca-cert.pem --cert client-cert.pem --key client-key.pem https://HOST:PORT/v1/status",
        arguments.folder.display(),
        arguments.name
    ))
}

fn write(arguments: &ClientCertificateArgs, of: Authority) -> Result<()> {
    let (name, folder) = (&arguments.name, arguments.folder.as_path());
    let cluster = target::load(&arguments.config, WithSecret::Yes)?;
    let secrets = cluster.secrets.as_ref().ok_or(OptionsError::NoSecret)?;
    ClientFiles::issue(secrets, of, name)?
        .write(folder)
        .with_context(|| format!("the certificate of {name} is not written to {}", folder.display()))
}
