//! The cluster's certificate authority, and the certificates it signs.
//!
//! The authority is made on the first start, under `pki/`, readable by its owner alone, and kept. All else is signed
//! anew when needed, so nothing that expires is ever on our disk; what was handed out before a restart stays valid.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::tokens::Key;
use crate::user::{AUTHENTICATED, MASTERS, User};

const DAY: Duration = Duration::from_secs(24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a certificate or key in PEM form; remove {directory} to make a new authority")]
    Damaged { path: PathBuf, directory: PathBuf },
    #[error("{path} is not a P-256 key in PEM form; remove it to make a new one, which ends all tokens")]
    NotASigningKey { path: PathBuf },
    #[error("cannot make a certificate for {subject}")]
    Sign {
        subject: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("cannot verify client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate and its key, in PEM form.
#[derive(Clone)]
pub struct Certificate {
    pub certificate: String,
    pub key: String,
}

pub(crate) struct Pki {
    ca_pem: String,
    ca_der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

struct Signed {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Pki {
    /// Reads the authority from `directory`, or makes it.
    pub(crate) fn open(directory: &Path) -> Result<Self, PkiError> {
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        // The key is written first: a certificate means that both are there.
        if !certificate_path.exists() {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|source| PkiError::File { path: directory.to_owned(), source })?;
            let key = KeyPair::generate().map_err(signing("the authority"))?;
            let certificate = authority().self_signed(&key).map_err(signing("the authority"))?;
            write_private(&key_path, &key.serialize_pem())?;
            write_private(&certificate_path, &certificate.pem())?;
        }
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source });
        let damaged = |path: &Path| PkiError::Damaged { path: path.to_owned(), directory: directory.to_owned() };
        let ca_pem = read(&certificate_path)?;
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| damaged(&certificate_path))?;
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(|_| damaged(&key_path))?;
        // The name and usage are always the same, so the issuer need not be read out of the certificate.
        Ok(Self { ca_pem, ca_der, issuer: Issuer::new(authority(), key), directory: directory.to_owned() })
    }

    /// The key that signs tokens.
    pub(crate) fn token_key(&self) -> Result<Key, PkiError> {
        Key::open(&self.directory.join("sa.key"))
    }

    fn sign(&self, user: &User, names: &[String], usages: &[ExtendedKeyUsagePurpose]) -> Result<Signed, PkiError> {
        let failed = || signing(&user.name);
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed())?;
        let mut subject = DistinguishedName::new();
        // That one is authenticated follows from having a certificate.
        for group in user.groups.iter().filter(|group| *group != AUTHENTICATED) {
            subject.push(DnType::OrganizationName, group.as_str());
        }
        subject.push(DnType::CommonName, user.name.as_str());
        params.distinguished_name = subject;
        params.not_before = (SystemTime::now() - DAY).into();
        params.not_after = (SystemTime::now() + LEAF_LIFE).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(failed())?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed())?;
        Ok(Signed { certificate, key })
    }

    /// For a client; a node's serves too, under the node's name, for the logs and commands that it is asked for.
    pub(crate) fn client(&self, user: &User) -> Result<Certificate, PkiError> {
        let signed = match user.as_node() {
            Some(node) => {
                let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
                self.sign(user, &[node.to_owned()], &usages)?
            }
            None => self.sign(user, &[], &[ExtendedKeyUsagePurpose::ClientAuth])?,
        };
        Ok(Certificate { certificate: signed.certificate.pem(), key: signed.key.serialize_pem() })
    }

    pub(crate) fn ca(&self) -> &str {
        &self.ca_pem
    }

    fn roots(&self) -> Result<RootCertStore, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca_der.clone())?;
        Ok(roots)
    }

    /// TLS for the API itself, under all of `names`; clients may show a certificate.
    pub(crate) fn server_tls(&self, names: &[String]) -> Result<Arc<ServerConfig>, PkiError> {
        let user = User { name: "kube-apiserver".into(), ..User::default() };
        let signed = self.sign(&user, names, &[ExtendedKeyUsagePurpose::ServerAuth])?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
                .allow_unauthenticated()
                .build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![signed.certificate.der().clone(), self.ca_der.clone()], key_der(&signed.key))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// TLS for asking nodes.
    pub(crate) fn node_client_tls(&self) -> Result<Arc<ClientConfig>, PkiError> {
        let user = User::new("kube-apiserver-kubelet-client", &[MASTERS]);
        let signed = self.sign(&user, &[], &[ExtendedKeyUsagePurpose::ClientAuth])?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(vec![signed.certificate.der().clone()], key_der(&signed.key))?;
        Ok(Arc::new(config))
    }

    pub(crate) fn kubeconfig(&self, server_url: &str, user: &User) -> Result<String, PkiError> {
        let Certificate { certificate, key } = self.client(user)?;
        let (authority, certificate, key) =
            (BASE64.encode(&self.ca_pem), BASE64.encode(certificate), BASE64.encode(key));
        let name = &user.name;
        Ok(format!(
            "apiVersion: v1
kind: Config
clusters:
- name: portolan
  cluster:
    server: {server_url}
    certificate-authority-data: {authority}
users:
- name: {name}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: portolan
  context:
    cluster: portolan
    user: {name}
current-context: portolan
"
        ))
    }
}

/// The user that a client certificate names. Its signature was checked when the connection was made.
pub(crate) fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let mut groups = Vec::new();
    for group in subject.iter_organization() {
        groups.push(group.as_str().ok()?);
    }
    Some(User::new(name, &groups))
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "portolan-ca");
    params.distinguished_name = subject;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + CA_LIFE).into();
    params
}

fn signing(subject: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let subject = subject.to_owned();
    |source| PkiError::Sign { subject, source }
}

fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

/// The private key in a file, which is made if it is not there, in PKCS #8 form.
pub(crate) fn private_key(path: &Path) -> Result<Vec<u8>, PkiError> {
    if !path.exists() {
        let key = KeyPair::generate().map_err(signing("tokens"))?;
        write_private(path, &key.serialize_pem())?;
    }
    let text = fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })?;
    let key = KeyPair::from_pem(&text).map_err(|_| PkiError::NotASigningKey { path: path.to_owned() })?;
    Ok(key.serialize_der())
}

/// Whole or not at all, and for the owner's eyes only.
fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let write = || {
        let temporary = path.with_extension("tmp");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    write().map_err(|source| PkiError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn der(certificate: &Certificate) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).unwrap()
    }

    #[test]
    fn a_certificate_says_who_one_is() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path()).unwrap();
        for user in [User::admin(), User::controllers(), User::node("node-1.example")] {
            assert_eq!(user_of(&der(&pki.client(&user).unwrap())), Some(user));
        }
    }

    #[test]
    fn the_authority_is_kept_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let first = Pki::open(&directory.path().join("pki")).unwrap();
        let second = Pki::open(&directory.path().join("pki")).unwrap();
        assert_eq!(first.ca(), second.ca());
        for file in ["ca.key", "ca.crt"] {
            let mode = fs::metadata(directory.path().join("pki").join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        Pki::open(directory.path()).unwrap();
        fs::write(directory.path().join("ca.key"), "nonsense").unwrap();
        let error = Pki::open(directory.path()).err().unwrap();
        assert!(error.to_string().contains("ca.key"), "{error}");
    }
}
