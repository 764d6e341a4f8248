//! Whose certificates a webhook may show.
//!
//! Those of the authorities in its definition or, without any, of those whom the machine trusts. As in Go, a certificate
//! that stands in the definition itself is good, also if it is an authority's own: that is what `openssl req -x509` makes.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// Whom the machine trusts, read when it is first asked for.
#[derive(Default)]
pub(super) struct Trust(OnceLock<RootCertStore>);

impl Trust {
    fn machines(&self) -> RootCertStore {
        let read = || {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        };
        self.0.get_or_init(read).clone()
    }

    /// How to speak to somebody whom these authorities vouch for, in PEM; nothing stands for the machine's.
    ///
    /// # Errors
    /// Says why nobody could be believed.
    pub(super) fn config(&self, authorities: &[u8]) -> Result<ClientConfig, String> {
        let own: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(authorities).flatten().collect();
        let roots = if authorities.is_empty() {
            self.machines()
        } else {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(own.iter().cloned());
            roots
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chains = WebPkiServerVerifier::builder_with_provider(roots.into(), provider.clone()).build();
        let verifier = Verifier { chains: chains.map_err(|error| error.to_string())?, own };
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?.dangerous();
        Ok(builder.with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
    }
}

#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.own.iter().any(|own| own == shown) {
            return self.chains.verify_server_cert(shown, between, name, ocsp, now);
        }
        verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
        let (_, parsed) = X509Certificate::from_der(shown).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let is_valid = ASN1Time::from_timestamp(now).is_ok_and(|now| parsed.validity().is_valid_at(now));
        if is_valid { Ok(ServerCertVerified::assertion()) } else { Err(CertificateError::Expired.into()) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, shown, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, shown, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
