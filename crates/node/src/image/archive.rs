//! A `docker save` tar or an OCI layout tar -> images in the store.
//!
//! The archive is unpacked beside the store first, because what describes its parts may come after them. Blobs of an
//! OCI layout are checked against their digests. Source: the OCI image specification; Docker's `image/spec/v1.2`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use nix::fcntl::OFlag;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::unpack::{open_in, unpack};
use super::{Error, Image, Imported, Store, failed, normalize};

/// A manifest or configuration longer than this is nonsense.
const MAX_JSON: u64 = 4 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
    user: String,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RunConfig>,
}

/// An image in an unpacked archive.
struct Found {
    names: Vec<String>,
    config: String,
    layers: Vec<String>,
    /// Its parts are named by their digests.
    verify: bool,
}

struct Unpacked<'a> {
    archive: &'a Path,
    root: File,
}

pub(super) fn import(store: &Store, archive: &Path) -> Result<Vec<Imported>, Error> {
    let scratch = store.scratch()?;
    let parts = scratch.0.join("parts");
    fs::create_dir(&parts).map_err(failed("make", &parts))?;
    let root = File::open(&parts).map_err(failed("read", &parts))?;
    let file = File::open(archive).map_err(failed("read", archive))?;
    let not_an_image = |reason: String| Error::NotAnImage { path: archive.to_owned(), reason };
    let reader = decompressed(file).map_err(|error| not_an_image(error.to_string()))?;
    unpack(reader, &root, false).map_err(|error| not_an_image(error.to_string()))?;
    let unpacked = Unpacked { archive, root };
    let mut imported = Vec::new();
    for (number, found) in unpacked.images()?.into_iter().enumerate() {
        let tree = scratch.0.join(format!("tree-{number}"));
        imported.extend(unpacked.add(store, found, &tree)?);
    }
    Ok(imported)
}

/// Plain bytes of what may be gzipped.
fn decompressed(mut file: File) -> io::Result<Box<dyn Read>> {
    let mut magic = [0; 4];
    let length = file.read(&mut magic)?;
    file.rewind()?;
    if length == 4 && magic == ZSTD {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "compressed with zstd, which is not supported: use gzip",
        ));
    }
    let file = BufReader::with_capacity(64 << 10, file);
    if magic.starts_with(&GZIP) { Ok(Box::new(MultiGzDecoder::new(file))) } else { Ok(Box::new(file)) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Unpacked<'_> {
    fn not_an_image(&self, reason: impl Into<String>) -> Error {
        Error::NotAnImage { path: self.archive.to_owned(), reason: reason.into() }
    }

    fn open(&self, name: &str) -> Result<File, Error> {
        let file = open_in(&self.root, Path::new(name), OFlag::O_RDONLY | OFlag::O_NONBLOCK);
        let file = file.map(File::from).map_err(|error| self.not_an_image(format!("{name}: {error}")))?;
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(file),
            _ => Err(self.not_an_image(format!("{name} is not a file"))),
        }
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(MAX_JSON + 1).read_to_end(&mut bytes);
        match read {
            Ok(length) if length as u64 <= MAX_JSON => Ok(bytes),
            Ok(_) => Err(self.not_an_image(format!("{name} is too long"))),
            Err(error) => Err(self.not_an_image(format!("{name}: {error}"))),
        }
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        serde_json::from_slice(&self.read(name)?).map_err(|error| self.not_an_image(format!("{name}: {error}")))
    }

    fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    fn images(&self) -> Result<Vec<Found>, Error> {
        if self.has("manifest.json") {
            let manifests: Vec<DockerManifest> = self.json("manifest.json")?;
            let found = manifests.into_iter().map(|manifest| Found {
                names: manifest.repo_tags.unwrap_or_default(),
                config: manifest.config,
                layers: manifest.layers,
                verify: false,
            });
            return Ok(found.collect());
        }
        if !self.has("index.json") {
            return Err(self.not_an_image("it has neither manifest.json nor index.json"));
        }
        let index: Index = self.json("index.json")?;
        let mut found = Vec::new();
        for descriptor in index.manifests {
            found.extend(self.follow(&descriptor, 0)?);
        }
        Ok(found)
    }

    /// The images that a descriptor leads to on this machine's architecture.
    fn follow(&self, descriptor: &Descriptor, depth: u8) -> Result<Vec<Found>, Error> {
        if descriptor.platform.as_ref().is_some_and(|p| p.os != "linux" || p.architecture != architecture()) {
            return Ok(Vec::new());
        }
        let blob = self.blob(&descriptor.digest)?;
        let mut found = Vec::new();
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
            if depth > 4 {
                return Err(self.not_an_image("indexes nested too deep"));
            }
            for inner in self.json::<Index>(&blob)?.manifests {
                found.extend(self.follow(&inner, depth + 1)?);
            }
        } else {
            let manifest: Manifest = self.json(&blob)?;
            let layers: Result<_, _> = manifest.layers.iter().map(|layer| self.blob(&layer.digest)).collect();
            let config = self.blob(&manifest.config.digest)?;
            found.push(Found { names: Vec::new(), config, layers: layers?, verify: true });
        }
        let annotation = |key: &str| descriptor.annotations.get(key).cloned();
        let name = annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name"));
        for image in &mut found {
            image.names.extend(name.clone());
        }
        Ok(found)
    }

    /// The name of a blob, which its digest is part of.
    fn blob(&self, digest: &str) -> Result<String, Error> {
        match digest.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(format!("blobs/sha256/{hex}"))
            }
            _ => Err(self.not_an_image(format!("{digest:?} is not a sha256 digest"))),
        }
    }

    fn digest(&self, name: &str) -> Result<String, Error> {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut file = self.open(name)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(hex(context.finish().as_ref())),
                Ok(length) => context.update(&buffer[..length]),
                Err(error) => return Err(self.not_an_image(format!("{name}: {error}"))),
            }
        }
    }

    fn add(&self, store: &Store, found: Found, tree: &Path) -> Result<Vec<Imported>, Error> {
        if found.verify {
            for blob in found.layers.iter().chain([&found.config]) {
                if !blob.ends_with(&self.digest(blob)?) {
                    return Err(self.not_an_image(format!("{blob} does not have the digest it is named by")));
                }
            }
        }
        let config: Config = self.json(&found.config)?;
        if !config.architecture.is_empty() && config.architecture != architecture() {
            let reason = format!("it is for {}, and this machine is {}", config.architecture, architecture());
            return Err(self.not_an_image(reason));
        }
        let names: Option<Vec<String>> = found.names.iter().map(|name| normalize(name)).collect();
        let names = names.ok_or_else(|| self.not_an_image(format!("it has a bad name: {:?}", found.names)))?;
        let run = config.config.unwrap_or_default();
        let mut image = Image {
            name: String::new(),
            id: format!("sha256:{}", self.digest(&found.config)?),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            env: run.env.unwrap_or_default(),
            working_dir: run.working_dir,
            user: run.user,
            stop_signal: run.stop_signal,
            size: 0,
        };
        // An image without a name can still be asked for by its id.
        let names = if names.is_empty() { vec![image.id.replace(':', "-")] } else { names };
        fs::create_dir(tree).map_err(failed("make", tree))?;
        let root = File::open(tree).map_err(failed("read", tree))?;
        for layer in &found.layers {
            let unpacked = decompressed(self.open(layer)?).and_then(|reader| unpack(reader, &root, true));
            image.size += unpacked.map_err(|source| Error::Layer {
                path: self.archive.to_owned(),
                layer: layer.clone(),
                source,
            })?;
        }
        let known = store.place(tree, &image)?;
        let mut imported = Vec::new();
        for name in names {
            image.name.clone_from(&name);
            store.record_image(&image)?;
            imported.push(Imported { name, id: image.id.clone(), known });
        }
        Ok(imported)
    }
}

/// This machine's architecture in Go's words, which image configurations use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "riscv64" => "riscv64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::PathBuf;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use serde_json::json;

    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, body) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(body.len() as u64);
            header.set_mode(0o644);
            header.set_uid(nix::unistd::geteuid().as_raw().into());
            header.set_gid(nix::unistd::getegid().as_raw().into());
            builder.append_data(&mut header, name, *body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn config() -> Vec<u8> {
        serde_json::to_vec(&json!({"architecture": architecture(), "os": "linux", "config": {
            "Entrypoint": ["/bin/app"], "Cmd": ["run"], "Env": ["A=1"], "WorkingDir": "/srv", "User": "1000"}}))
        .unwrap()
    }

    fn docker() -> Vec<u8> {
        let manifest =
            json!([{"Config": "config.json", "RepoTags": ["app:v1", "app"], "Layers": ["1/layer.tar", "2.tgz"]}]);
        tar(&[
            ("1/layer.tar", &tar(&[("bin/app", b"one"), ("etc/old", b"x")])),
            ("2.tgz", &gzip(&tar(&[("bin/app", b"two"), ("etc/.wh.old", b"")]))),
            ("config.json", &config()),
            ("manifest.json", &serde_json::to_vec(&manifest).unwrap()),
        ])
    }

    fn digest(bytes: &[u8]) -> String {
        hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
    }

    /// `spoil` changes the layer after its digest was taken.
    fn oci(spoil: bool) -> Vec<u8> {
        let layer = gzip(&tar(&[("bin/app", b"oci")]));
        let (config, shown) = (config(), if spoil { gzip(b"other") } else { layer.clone() });
        let of = |bytes: &[u8]| format!("sha256:{}", digest(bytes));
        let manifest = json!({"config": {"digest": of(&config)}, "layers": [{"digest": of(&layer)}]});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let platform = |arch: &str| json!({"architecture": arch, "os": "linux"});
        let inner = json!({"manifests": [
            {"digest": of(&manifest), "mediaType": "application/vnd.oci.image.manifest.v1+json",
             "platform": platform(architecture())},
            {"digest": of(b"absent"), "platform": platform("s390x")}]});
        let inner = serde_json::to_vec(&inner).unwrap();
        let index = json!({"manifests": [{"digest": of(&inner), "mediaType": "application/vnd.oci.image.index.v1+json",
            "annotations": {"org.opencontainers.image.ref.name": "registry.example/team/app:v2"}}]});
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes));
        tar(&[
            ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
            ("index.json", &serde_json::to_vec(&index).unwrap()),
            (&blob(&inner), &inner),
            (&blob(&manifest), &manifest),
            (&blob(&config), &config),
            (&blob(&layer), &shown),
        ])
    }

    struct Lab {
        dir: tempfile::TempDir,
        store: Store,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&dir.path().join("store")).unwrap();
            Self { dir, store }
        }

        fn import(&self, archive: &[u8]) -> Result<Vec<Imported>, Error> {
            let path: PathBuf = self.dir.path().join("archive.tar");
            fs::write(&path, archive).unwrap();
            let result = self.store.import(&path);
            let left = fs::read_dir(self.dir.path().join("store/tmp")).unwrap().count();
            assert_eq!(left, 0, "something was left behind");
            result
        }

        fn file(&self, image: &str, name: &str) -> Option<String> {
            let image = self.store.get(image)?;
            fs::read_to_string(self.store.rootfs(&image).join(name)).ok()
        }
    }

    #[test]
    fn docker_archives() {
        for archive in [docker(), gzip(&docker())] {
            let lab = Lab::new();
            let imported = lab.import(&archive).unwrap();
            let names: Vec<_> = imported.iter().map(|image| image.name.as_str()).collect();
            assert_eq!(names, ["docker.io/library/app:v1", "docker.io/library/app:latest"]);
            let read = |name| lab.file("app:v1", name);
            assert_eq!((read("bin/app").as_deref(), read("etc/old"), read("etc/.wh.old")), (Some("two"), None, None));
            let image = lab.store.get("app").unwrap();
            assert_eq!((image.entrypoint, image.cmd), (vec!["/bin/app".to_owned()], vec!["run".to_owned()]));
            assert_eq!((image.user.as_str(), image.working_dir.as_str()), ("1000", "/srv"));
            assert_eq!(lab.store.list().unwrap().len(), 2);
            assert_eq!(lab.store.get(&image.id).unwrap().id, image.id);
            assert!(lab.import(&archive).unwrap()[0].known);
        }
    }

    #[test]
    fn oci_archives_choose_the_platform_and_check_digests() {
        let lab = Lab::new();
        assert_eq!(lab.import(&oci(false)).unwrap()[0].name, "registry.example/team/app:v2");
        assert_eq!(lab.file("registry.example/team/app:v2", "bin/app").as_deref(), Some("oci"));
        let error = Lab::new().import(&oci(true)).unwrap_err().to_string();
        assert!(error.contains("does not have the digest"), "{error}");
    }

    #[test]
    fn what_is_not_an_image_is_refused_with_a_reason() {
        let manifest =
            |layers: &str| format!(r#"[{{"Config":"c","RepoTags":["x"],"Layers":["{layers}"]}}]"#).into_bytes();
        for (archive, reason) in [
            (b"not a tar, but long enough to be taken for the start of one".to_vec(), "not an image archive"),
            (tar(&[("a", b"b")]), "neither manifest.json nor index.json"),
            (tar(&[("manifest.json", b"{")]), "manifest.json"),
            (tar(&[("manifest.json", &manifest("../../etc/passwd")), ("c", &config())]), "etc/passwd"),
            (tar(&[("manifest.json", &manifest("l")), ("c", br#"{"architecture":"mips"}"#), ("l", b"")]), "mips"),
            (tar(&[("index.json", br#"{"manifests":[{"digest":"sha256:../x"}]}"#)]), "not a sha256 digest"),
        ] {
            let lab = Lab::new();
            let error = lab.import(&archive).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert!(lab.store.list().unwrap().is_empty());
        }
    }
}
