//! Partial archives where every run of a day is a version of one key: a partial one must never lie over a whole one. Its key is fixed before anybody
//! knows that it is partial, so it is completed there, copied to `….partial`, compared, and its version deleted. A note says that this is under way;
//! the next run finishes what was cut. Without the right to delete it is not stored at all.

use super::complete::{Published, is_of};
use super::copy::Source;
use super::store::{Store, unquoted};
use super::upload::Multipart;
use bk_core::context::Context;
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::sink::{NoteName, Was};
use serde::{Deserialize, Serialize};

/// A partial archive that lies at its key.
const PARTIAL: &str = "partial-";
/// One that is being moved away.
const MOVING: &str = "moving-";

#[derive(Serialize, Deserialize)]
struct Moving {
    key: String,
    id: String,
}

/// Where a partial archive may go.
pub enum Way {
    /// To its key: no whole one lies there.
    InPlace,
    /// To its key, and from there to `….partial`.
    Aside,
    /// Nowhere.
    None,
}

impl Store {
    /// Decides before anything is visible.
    pub async fn way_of_partial(&self, cx: &Context, upload: &Multipart) -> Result<Way> {
        let partial: Vec<String> = self
            .notes(cx, &self.site, PARTIAL)
            .await?
            .into_iter()
            .filter_map(|note| note.name.name.strip_prefix(PARTIAL).map(str::to_owned))
            .collect();
        let mut whole_there = false;
        for version in self.versions_of(cx, &upload.key).await? {
            if version.marker {
                continue;
            }
            match self.id_of(cx, &upload.key, Some(&version.id)).await {
                Ok(Some(id)) if partial.contains(&id) => {}
                Ok(_) => whole_there = true,
                Err(fault) if fault.is_not_found() => {}
                Err(fault) => return Err(fault.while_trying(&format!("look at `{}`", upload.key))),
            }
        }
        Ok(if !whole_there {
            Way::InPlace
        } else if self.may_delete(cx).await? {
            Way::Aside
        } else {
            Way::None
        })
    }

    /// Tries it on a scratch object of our own.
    pub async fn may_delete(&self, cx: &Context) -> Result<bool> {
        let key = format!("{}.bk/{}/may-delete", self.prefix, self.site);
        self.put_small(cx, &key, bytes::Bytes::from_static(b"x"), None)
            .await
            .map_err(|fault| fault.while_trying(&format!("write `{key}`")))?;
        for version in self.versions_of(cx, &key).await? {
            match self.delete_version(cx, &key, Some(&version.id)).await {
                Ok(()) => {}
                Err(fault) if fault.is_denied() => return Ok(false),
                Err(fault) => return Err(fault.while_trying(&format!("delete `{key}`"))),
            }
        }
        Ok(true)
    }

    /// Remembers that the archive of this id is partial and stays at its key.
    pub async fn note_partial(&self, cx: &Context, id: &str) -> Result<()> {
        let name = self.own_note(&format!("{PARTIAL}{id}"));
        self.set_note(cx, &name, bytes::Bytes::from_static(b"{}"), Was::Any)
            .await
    }

    /// Forgets it with its archive.
    pub async fn forget_partial(&self, cx: &Context, id: &str) -> Result<()> {
        self.remove_note(cx, &self.own_note(&format!("{PARTIAL}{id}")))
            .await
    }

    fn moving_note(&self, id: &str) -> NoteName {
        self.own_note(&format!("{MOVING}{id}"))
    }

    /// Says what is about to happen, so that a cut in between can be mended.
    pub async fn announce_move(&self, cx: &Context, key: &str, id: &str) -> Result<()> {
        let body = serde_json::to_vec(&Moving {
            key: key.to_owned(),
            id: id.to_owned(),
        })
        .map_err(|e| bk_core::error::bug(e.to_string()))?;
        self.set_note(cx, &self.moving_note(id), body.into(), Was::Any)
            .await
    }

    /// Moves it: copy, compare, delete the version. May be repeated.
    pub async fn move_aside(
        &self,
        cx: &Context,
        key: &str,
        id: &str,
        published: &Published,
    ) -> Result<(String, Published)> {
        let target = format!("{key}.partial");
        let there = self.find_id(cx, &target, id).await?;
        let copy = match there {
            Some(copy) if copy.head.content_length() == published.head.content_length() => copy,
            _ => {
                let source = Source {
                    key,
                    version: published.version.as_deref(),
                    etag: &unquoted(published.head.e_tag()),
                    head: &published.head,
                };
                self.copy(cx, self.bucket(), source, &target).await?
            }
        };
        self.delete_version(cx, key, published.version.as_deref())
            .await
            .map_err(|fault| {
                fault.while_trying(&format!("delete the partial version of `{key}`"))
            })?;
        if let Err(error) = self.remove_note(cx, &self.moving_note(id)).await {
            tracing::debug!(%error, "a note of a finished move stays");
        }
        Ok((target, copy))
    }

    /// The version of a key that belongs to this archive.
    async fn find_id(&self, cx: &Context, key: &str, id: &str) -> Result<Option<Published>> {
        for version in self.versions_of(cx, key).await? {
            if version.marker {
                continue;
            }
            match self.head(cx, key, Some(&version.id)).await {
                Ok(head) if is_of(&head, id) => {
                    return Ok(Some(Published {
                        version: Some(version.id),
                        head,
                    }));
                }
                Ok(_) => {}
                Err(fault) if fault.is_not_found() => {}
                Err(fault) => return Err(fault.while_trying(&format!("look at `{key}`"))),
            }
        }
        Ok(None)
    }

    /// Before a new upload: finishes moves that were cut.
    pub async fn finish_moves(&self, cx: &Context) -> Result<()> {
        for seen in self.notes(cx, &self.site, MOVING).await? {
            let Some(note) = self.note(cx, &seen.name).await? else {
                continue;
            };
            let Ok(moving) = serde_json::from_slice::<Moving>(&note.body) else {
                continue;
            };
            match self.find_id(cx, &moving.key, &moving.id).await? {
                Some(published) => {
                    tracing::info!(key = %moving.key, "finishing the move of a partial archive");
                    Box::pin(self.move_aside(cx, &moving.key, &moving.id, &published)).await?;
                }
                None => self.remove_note(cx, &seen.name).await?,
            }
        }
        Ok(())
    }
}

/// Why a partial archive was not stored.
pub fn nowhere(key: &str) -> Error {
    Error::new(
        ErrorKind::Denied,
        format!("the archive is partial, a whole one lies at `{key}`, and the credential may not delete versions: it was not stored there"),
    )
    .hint("mend what failed and repeat the backup; with `delete_access_key` partial archives are kept beside whole ones")
}
