//! What a volume that is made from API objects holds -> a directory whose files all change at once.
//!
//! Laid out as a kubelet does (`pkg/volume/util/atomic_writer.go`), because programs watch for it: the files are in a
//! directory of their own, which the link `..data` names, and what containers open are links through that one. So new
//! contents are a new directory, and the change is one renaming.
//!
//! Invariant: a file that was opened stays whole; nothing is written when nothing would change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod};

use super::super::objects::Objects;
use crate::pod::{Lookup, ServiceEnv, field, resource_field};

/// The link to the directory that counts.
const DATA: &str = "..data";

/// By their paths within the volume.
#[derive(Default)]
pub(super) struct Files(BTreeMap<String, File>);

struct File {
    content: Vec<u8>,
    mode: i32,
    /// The agent's own, if nobody's.
    owner: Option<u32>,
}

impl File {
    fn new(content: Vec<u8>, mode: i32) -> Self {
        Self { content, mode, owner: None }
    }

    fn mode(&self, group: Option<u32>) -> u32 {
        let mode = u32::try_from(self.mode).unwrap_or(0o644) & 0o777;
        if group.is_some() { mode | 0o040 } else { mode }
    }
}

impl Files {
    pub(super) fn add(
        &mut self,
        objects: &Objects,
        kind: &'static str,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), String> {
        let optional = optional == Some(true);
        let Some(data) = objects.data(kind, name) else {
            return if optional { Ok(()) } else { Err(format!("{kind} \"{name}\" not found")) };
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            self.0.extend(data.iter().map(|(key, value)| (key.clone(), File::new(value.clone(), mode))));
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => {
                    self.0.insert(item.path.clone(), File::new(value.clone(), item.mode.unwrap_or(mode)));
                }
                None if optional => {}
                None => return Err(format!("references non-existent {kind} key: {}", item.key)),
            }
        }
        Ok(())
    }

    pub(super) fn add_fields(
        &mut self,
        pod: &Pod,
        context: &ServiceEnv<'_>,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
    ) -> Result<(), String> {
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(reference), _) => field(pod, context, &reference.field_path)?,
                (None, Some(selector)) => resource_field(pod, None, context, selector)?,
                (None, None) => continue,
            };
            self.0.insert(item.path.clone(), File::new(value.into_bytes(), item.mode.unwrap_or(mode)));
        }
        Ok(())
    }

    pub(super) fn add_token(&mut self, path: &str, content: Vec<u8>, mode: i32, owner: Option<u32>) {
        self.0.insert(path.to_owned(), File { content, mode, owner });
    }

    /// Makes them the contents of the volume at `root`.
    pub(super) fn publish(&self, root: &Path, group: Option<u32>) -> io::Result<()> {
        for name in self.0.keys() {
            if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) || name.starts_with("..")
            {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a bad path: {name}")));
            }
        }
        fs::create_dir_all(root)?;
        let old = fs::read_link(root.join(DATA)).ok();
        if old.is_some() && self.are_in(&root.join(DATA), group) {
            return Ok(());
        }
        let old = old.and_then(|name| name.to_str()?.strip_prefix("..")?.parse::<u64>().ok());
        let name = |number: u64| format!("..{number}");
        let new = name(old.map_or(1, |number| number.wrapping_add(1)));
        // From an attempt that did not get to its end.
        let _ = fs::remove_dir_all(root.join(&new));
        self.write(&root.join(&new), group)?;
        let link = root.join("..data_tmp");
        let _ = fs::remove_file(&link);
        symlink(&new, &link)?;
        fs::rename(&link, root.join(DATA))?;
        self.link(root)?;
        match old {
            Some(old) => fs::remove_dir_all(root.join(name(old))),
            None => Ok(()),
        }
    }

    fn are_in(&self, dir: &Path, group: Option<u32>) -> bool {
        let mut found = BTreeMap::new();
        let wanted = self.0.iter().map(|(name, file)| (name.clone(), (file.content.clone(), file.mode(group))));
        read(dir, "", &mut found).is_ok() && wanted.eq(found)
    }

    fn write(&self, dir: &Path, group: Option<u32>) -> io::Result<()> {
        let made = |dir: &Path| fs::DirBuilder::new().recursive(true).mode(0o755).create(dir);
        made(dir)?;
        for (name, file) in &self.0 {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                made(parent)?;
            }
            let mut opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            opened.write_all(&file.content)?;
            if file.owner.is_some() || group.is_some() {
                chown(&path, file.owner, group)?;
            }
            opened.set_permissions(fs::Permissions::from_mode(file.mode(group)))?;
        }
        Ok(())
    }

    /// Has a link for each name there is in the volume, and none besides.
    fn link(&self, root: &Path) -> io::Result<()> {
        let names: BTreeSet<&str> = self.0.keys().filter_map(|name| name.split('/').next()).collect();
        for name in &names {
            match symlink(format!("{DATA}/{name}"), root.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        for entry in fs::read_dir(root)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with("..") && !names.contains(&*name) {
                fs::remove_file(root.join(&*name))?;
            }
        }
        Ok(())
    }
}

/// All files below a directory, with their modes.
fn read(dir: &Path, prefix: &str, found: &mut BTreeMap<String, (Vec<u8>, u32)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            read(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name, (fs::read(entry.path())?, metadata.permissions().mode() & 0o777));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |(name, text): &(&str, &str)| ((*name).to_owned(), File::new(text.as_bytes().to_vec(), 0o644));
        Files(list.iter().map(file).collect())
    }

    fn shown(root: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn contents_change_together_and_what_is_open_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        files(&[("a", "1"), ("deep/b", "1"), ("gone", "1")]).publish(root, None).unwrap();
        assert_eq!(shown(root), ["..1", "..data", "a", "deep", "gone"]);
        let mut open = fs::File::open(root.join("a")).unwrap();
        let text = |name: &str| fs::read_to_string(root.join(name)).unwrap();
        assert_eq!((text("a").as_str(), text("deep/b").as_str()), ("1", "1"));
        let new = files(&[("a", "2"), ("deep/b", "2"), ("new", "2")]);
        new.publish(root, None).unwrap();
        assert_eq!(shown(root), ["..2", "..data", "a", "deep", "new"]);
        assert_eq!((text("a").as_str(), text("deep/b").as_str(), text("new").as_str()), ("2", "2", "2"));
        assert_eq!(io::read_to_string(&mut open).unwrap(), "1");
        new.publish(root, None).unwrap();
        assert_eq!(shown(root)[0], "..2", "nothing changed");
        let stricter = Files(new.0.into_iter().map(|(name, file)| (name, File { mode: 0o400, ..file })).collect());
        stricter.publish(root, None).unwrap();
        assert_eq!(fs::metadata(root.join("a")).unwrap().permissions().mode() & 0o777, 0o400);
    }

    #[test]
    fn a_change_that_was_cut_off_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        files(&[("a", "1")]).publish(dir.path(), None).unwrap();
        fs::create_dir(dir.path().join("..2")).unwrap();
        fs::write(dir.path().join("..2/half"), "").unwrap();
        symlink("..2", dir.path().join("..data_tmp")).unwrap();
        files(&[("a", "2")]).publish(dir.path(), None).unwrap();
        assert_eq!(shown(dir.path()), ["..2", "..data", "a"]);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "2");
    }
}
