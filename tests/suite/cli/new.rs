//! `hapax new`.

use std::path::Path;

use hapax_tests::TestResult;

use crate::workspace::{Workspace, snapshot};

#[test]
fn a_project_is_made_once() -> TestResult {
    let workspace = Workspace::new()?;
    snapshot!("new", workspace.hapax("new accept-order")?);
    let manifest = std::fs::read_to_string(workspace.path("accept-order/Cargo.toml"))?;
    assert!(manifest.contains("name = \"accept-order\"") && manifest.contains("hapax-guest = \"0."), "{manifest}");
    assert!(workspace.path("accept-order/.gitignore").is_file());
    snapshot!("new_again", workspace.hapax("new accept-order")?);
    snapshot!("new_bad_name", workspace.hapax("new Accept/Order")?);
    // All but its module, which is not built, is as it should be.
    let ran = workspace.hapax("check -c accept-order/hapax.toml")?;
    assert_eq!(ran.out.lines().last(), Some("1 problem"), "{}", ran.snapshot());
    assert!(ran.err.is_empty(), "{}", ran.err);
    Ok(())
}

#[test]
fn the_sdk_can_be_a_checkout() -> TestResult {
    let workspace = Workspace::new()?;
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-sdk/rust").canonicalize()?;
    workspace.hapax(&format!("new here --sdk {}", sdk.display()))?.expect_success()?;
    let manifest = std::fs::read_to_string(workspace.path("here/Cargo.toml"))?;
    assert!(manifest.contains(&format!("hapax-guest = {{ path = \"{}\" }}", sdk.display())), "{manifest}");
    Ok(())
}
