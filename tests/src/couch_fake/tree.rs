//! The revisions of a document: its leaves, each with its history.

use bytes::Bytes;

/// A document.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Its leaves.
    pub leaves: Vec<Leaf>,
    /// Leaves that were replaced, until somebody compacts the database.
    pub old: Vec<Leaf>,
    /// When it was written last, in its shard.
    pub written: u64,
}

/// A leaf.
#[derive(Clone, Debug, Default)]
pub struct Leaf {
    /// Generation.
    pub start: u64,
    /// Its revision and those before it, without their generations.
    pub ids: Vec<String>,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Its own members, `"a":1,"b":2`.
    pub body: String,
    /// Its attachments.
    pub attachments: Vec<Attachment>,
}

/// An attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    pub name: String,
    pub content_type: String,
    pub revpos: u64,
    /// Of what is stored.
    pub digest: String,
    /// Before it was compressed.
    pub length: u64,
    /// Whether it is compressed.
    pub gzip: bool,
    /// As it is stored.
    pub stored: Bytes,
}

impl Leaf {
    /// `3-abc`.
    pub fn rev(&self) -> String {
        format!("{}-{}", self.start, self.ids[0])
    }

    /// Whether a revision is this leaf, or before it.
    pub fn descends_from(&self, start: u64, id: &str) -> bool {
        self.start >= start
            && self
                .ids
                .get((self.start - start) as usize)
                .is_some_and(|there| there == id)
    }
}

impl Tree {
    /// Who lives wins, then the longer history, then the larger revision.
    pub fn winner(&self) -> &Leaf {
        self.leaves
            .iter()
            .max_by(|a, b| {
                let key = |leaf: &Leaf| (!leaf.deleted, leaf.start, leaf.ids[0].clone());
                key(a).cmp(&key(b))
            })
            .unwrap()
    }

    /// Leaves, the winner first.
    pub fn sorted(&self) -> Vec<&Leaf> {
        let mut leaves: Vec<&Leaf> = self.leaves.iter().collect();
        leaves.sort_by(|a, b| {
            let key = |leaf: &Leaf| (!leaf.deleted, leaf.start, leaf.ids[0].clone());
            key(b).cmp(&key(a))
        });
        leaves
    }

    /// The leaf of a revision.
    pub fn leaf(&self, rev: &str) -> Option<&Leaf> {
        self.leaves.iter().find(|leaf| leaf.rev() == rev)
    }

    /// Takes a leaf with its history in; says whether that changed anything.
    pub fn merge(&mut self, mut new: Leaf, revs_limit: usize) -> bool {
        if self
            .leaves
            .iter()
            .any(|leaf| leaf.descends_from(new.start, &new.ids[0]))
        {
            return false;
        }
        let ancestor = self
            .leaves
            .iter()
            .position(|leaf| new.descends_from(leaf.start, &leaf.ids[0]));
        if let Some(ancestor) = ancestor {
            let old = self.leaves.remove(ancestor);
            let known = (new.start - old.start) as usize + old.ids.len();
            if known > new.ids.len() {
                let from = new.ids.len() - (new.start - old.start) as usize;
                new.ids.extend(old.ids[from..].iter().cloned());
            }
            self.old.push(old);
        }
        new.ids.truncate(revs_limit);
        self.leaves.push(new);
        true
    }

    /// Takes a leaf out as if it had never been.
    pub fn purge(&mut self, rev: &str) {
        self.leaves.retain(|leaf| leaf.rev() != rev);
        self.old.clear();
    }
}
