//! Extended attributes: what a file has beside its bytes, its ACLs and capabilities among them.

use rustix::io::{Errno, Result};
use std::os::fd::BorrowedFd;

/// What a program may do without being root.
pub const CAPABILITY: &[u8] = b"security.capability";
const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
const USUAL_BYTES: usize = 1 << 10;
/// What Linux lets a list of names, or a value, have.
const LARGEST_BYTES: usize = 64 << 10;

/// Whether an attribute is the data's own. Others belong to the machine: labels of its security policy, what its file system compresses.
pub fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name == CAPABILITY
        || ACLS.contains(&name)
}

/// Those of an open file that are kept, sorted by name. A file system without any has none.
pub fn read(of: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let listed = match sized(|buffer| rustix::fs::flistxattr(of, buffer)) {
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        listed => listed?,
    };
    let mut found = Vec::new();
    let names = listed.split(|b| *b == 0).filter(|name| is_kept(name));
    for name in names {
        match sized(|buffer| rustix::fs::fgetxattr(of, name, buffer)) {
            // Taken away since it was listed.
            Err(Errno::NODATA) => {}
            value => found.push((name.to_vec(), value?)),
        }
    }
    found.sort();
    Ok(found)
}

/// What a call writes into a buffer that is large enough.
fn sized(call: impl Fn(&mut [u8]) -> Result<usize>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; USUAL_BYTES];
    loop {
        match call(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < LARGEST_BYTES => {
                buffer.resize(LARGEST_BYTES, 0);
            }
            used => {
                buffer.truncate(used?);
                return Ok(buffer);
            }
        }
    }
}
