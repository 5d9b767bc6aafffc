//! Components changed byte by byte: the same again under another digest, or with something that misbehaves inside.

/// What a component begins with; this is one with nothing in it.
pub const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

/// Ids of sections of a component.
const CUSTOM: u8 = 0;
const CORE_MODULE: u8 = 1;
const CORE_INSTANCE: u8 = 2;

/// The same component with another digest: `mark`, of at most 100 bytes, is added in a custom section, which means
/// nothing.
#[must_use]
pub fn rebuilt(component: &[u8], mark: &[u8]) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes.extend(section(CUSTOM, &[&[1, b'n'], mark].concat()));
    bytes
}

/// The same component with another core module inside, which is instantiated with it.
#[must_use]
pub fn with_core_module(component: &[u8], module: &[u8]) -> Vec<u8> {
    let modules = top_level_sections(component).filter(|id| *id == CORE_MODULE).count();
    let index = u8::try_from(modules).expect("fewer than 128 core modules");
    let mut bytes = component.to_vec();
    bytes.extend(section(CORE_MODULE, module));
    bytes.extend(section(CORE_INSTANCE, &[1, 0, index, 0]));
    bytes
}

/// A core module that traps when it starts.
#[must_use]
pub fn trapping_at_start() -> Vec<u8> {
    // No locals, unreachable, end.
    starting_with(&[0, 0x00, 0x0b])
}

/// A core module whose start function has this body.
#[must_use]
pub fn starting_with(body: &[u8]) -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    module.extend(section(1, &[1, 0x60, 0, 0]));
    module.extend(section(3, &[1, 0]));
    module.extend(section(8, &[0]));
    let size = u8::try_from(body.len()).expect("a short body");
    module.extend(section(10, &[&[1, size], body].concat()));
    module
}

/// A section of a component or a core module.
///
/// # Panics
/// When it is longer than 127 bytes: its length is written in one.
#[must_use]
pub fn section(id: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 128, "one byte of LEB128");
    [&[id, u8::try_from(payload.len()).expect("less than 128")], payload].concat()
}

/// The ids of a component's sections.
fn top_level_sections(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = &bytes[EMPTY.len()..];
    std::iter::from_fn(move || {
        let (id, after) = rest.split_first()?;
        let length = after.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
        let size = after[..length].iter().rev().fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
        rest = &after[length + size..];
        Some(*id)
    })
}
