//! The crate carries a copy of the contract, because a published package holds only its own folder.

use std::collections::BTreeMap;
use std::path::Path;

fn files(folder: &Path, prefix: &str, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        let name = format!("{prefix}/{}", path.file_name().unwrap().to_string_lossy());
        if path.is_dir() {
            files(&path, &name, into);
        } else {
            into.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn the_copy_of_the_contract_equals_the_original() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let original = here.join("../../wit");
    // In a published package there is no original to compare with.
    if !here.join("../../wit/handler.wit").exists() {
        assert!(here.join("wit/handler.wit").exists());
        return;
    }
    let (mut expected, mut copied) = (BTreeMap::new(), BTreeMap::new());
    files(&original, "wit", &mut expected);
    files(&here.join("wit"), "wit", &mut copied);
    assert!(
        expected == copied,
        "guest-sdk/rust/wit differs from wit: run `rm -r guest-sdk/rust/wit && cp -r wit guest-sdk/rust/`"
    );
}
