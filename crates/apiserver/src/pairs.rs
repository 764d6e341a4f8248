//! A TLS Secret -> what a TLS server would say against it: a warning, for it is stored all the same.
//!
//! Source: `X509KeyPair` of Go's `crypto/tls`, as Kubernetes asks it. Deliberately not here: keys that this program's own
//! TLS library cannot use, as of RSA with less than 2,048 bits. Nothing is said of them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use portolan_kinds::Kind;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

pub(crate) fn warning(kind: &Kind, object: &Value) -> Option<String> {
    if kind.kind != "Secret" || !kind.group.is_empty() || object["type"] != "kubernetes.io/tls" {
        return None;
    }
    let data = |key: &str| STANDARD.decode(object["data"][key].as_str().unwrap_or_default()).unwrap_or_default();
    disagreement(&blocks(&data("tls.crt")), &blocks(&data("tls.key"))).map(|why| format!("tls: {why}"))
}

fn blocks(text: &[u8]) -> Vec<Pem> {
    Pem::iter_from_buffer(text).map_while(Result::ok).collect()
}

fn disagreement(certificates: &[Pem], keys: &[Pem]) -> Option<String> {
    let labels = |blocks: &[Pem]| blocks.iter().map(|block| block.label.as_str()).collect::<Vec<_>>().join(" ");
    let is_key = |label: &str| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY");
    let Some(certificate) = certificates.iter().find(|block| block.label == "CERTIFICATE") else {
        return Some(match certificates {
            [] => "failed to find any PEM data in certificate input".to_owned(),
            [only] if is_key(&only.label) => {
                "failed to find certificate PEM data in certificate input, but did find a \
                                              private key; PEM inputs may have been switched"
                    .to_owned()
            }
            others => format!(
                "failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following \
                 types: [{}]",
                labels(others)
            ),
        });
    };
    let Some(key) = keys.iter().find(|block| is_key(&block.label)) else {
        return Some(match keys {
            [] => "failed to find any PEM data in key input".to_owned(),
            [only] if only.label == "CERTIFICATE" => {
                "found a certificate rather than a key in the PEM for the private key".to_owned()
            }
            others => format!(
                "failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the \
                 following types: [{}]",
                labels(others)
            ),
        });
    };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&certificate.contents) else {
        return Some("failed to parse certificate".to_owned());
    };
    let Ok(key) = PrivateKeyDer::try_from(key.contents.as_slice()) else {
        return Some("failed to parse private key".to_owned());
    };
    let signing = any_supported_type(&key).ok()?;
    let public = signing.public_key()?;
    let (_, of_key) = SubjectPublicKeyInfo::from_der(&public).ok()?;
    let of_certificate = certificate.public_key();
    if of_key.algorithm.algorithm != of_certificate.algorithm.algorithm {
        Some("private key type does not match public key type".to_owned())
    } else if of_key.subject_public_key.data != of_certificate.subject_public_key.data {
        Some("private key does not match public key".to_owned())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, SignatureAlgorithm};

    use super::*;

    /// A certificate and its key.
    fn pair(algorithm: &'static SignatureAlgorithm) -> (String, String) {
        let key = KeyPair::generate_for(algorithm).unwrap();
        (CertificateParams::default().self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn a_key_that_is_not_of_the_certificate_is_told_of() {
        let (certificate, key) = pair(&PKCS_ECDSA_P256_SHA256);
        let (other, other_key) = pair(&PKCS_ECDSA_P256_SHA256);
        let (_, edwards) = pair(&PKCS_ED25519);
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let said = |certificate: &str, key: &str| {
            disagreement(&blocks(certificate.as_bytes()), &blocks(key.as_bytes())).unwrap_or_default()
        };
        for (certificate, key, expected) in [
            (certificate.as_str(), key.as_str(), ""),
            (&format!("{certificate}{other}"), &format!("{parameters}{key}"), ""),
            (&certificate, &other_key, "private key does not match public key"),
            (&certificate, &edwards, "private key type does not match public key type"),
            ("", &key, "failed to find any PEM data in certificate input"),
            ("certificate", &key, "failed to find any PEM data in certificate input"),
            (&certificate, "", "failed to find any PEM data in key input"),
            (&certificate, &other, "found a certificate rather than a key in the PEM for the private key"),
            (
                &key,
                &certificate,
                "failed to find certificate PEM data in certificate input, but did find a private key; PEM \
                                  inputs may have been switched",
            ),
            (
                parameters,
                &key,
                "failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
                                following types: [EC PARAMETERS]",
            ),
            (
                &certificate,
                parameters,
                "failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after \
                                        skipping PEM blocks of the following types: [EC PARAMETERS]",
            ),
            (&certificate, &parameters.replace("PARAMETERS", "PRIVATE KEY"), "failed to parse private key"),
        ] {
            assert_eq!(said(certificate, key), expected);
        }
    }
}
