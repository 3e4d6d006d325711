//! Users and roles, merged by the server itself from two collections that are made for that. The account in use is never touched.

use crate::mongodb::bson::{self, Writing};
use crate::mongodb::connection::{Connection, Failure};
use bk_core::error::{Error, ErrorKind, Result};
use bk_core::source::Existing;
use mongodb::bson::Bson;

/// Where they lie for a moment.
const USERS: &str = "bk_restored_users";
const ROLES: &str = "bk_restored_roles";

/// How it went.
pub enum Merged {
    /// They are there.
    Done,
    /// The server cannot, and why.
    Not(String),
}

/// Merges users and roles. With `replace` those that are there already are made anew, and those that the archive has not go.
pub async fn merge(
    connection: &Connection,
    users: &[Vec<u8>],
    roles: &[Vec<u8>],
    existing: Existing,
) -> Result<Merged> {
    let own = in_use(connection).await?;
    let users: Vec<&[u8]> = users
        .iter()
        .map(Vec::as_slice)
        .filter(|user| bson::text(user, "_id") != own.as_deref())
        .collect();
    if let Some(bare) = users
        .iter()
        .find(|user| bson::find(user, b"credentials").is_none())
    {
        let name = bson::text(bare, "_id").unwrap_or("?");
        return Ok(Merged::Not(format!(
            "the archive has no credentials of user `{name}`: users are not restored"
        )));
    }
    let roles: Vec<&[u8]> = roles.iter().map(Vec::as_slice).collect();
    if users.is_empty() && roles.is_empty() {
        return Ok(Merged::Done);
    }
    let done = merge_through(connection, &users, &roles, existing, own.as_deref()).await;
    for name in [USERS, ROLES] {
        // They are left-overs of a refused merge, or of none.
        let _ = connection
            .run("admin", Writing::new().text("drop", name))
            .await;
    }
    match done {
        Ok(()) => Ok(Merged::Done),
        Err(failure) if failure.is_unknown_command() => Ok(Merged::Not(
            "the server cannot merge users and roles: they are not restored".into(),
        )),
        Err(failure) => Err(failure
            .error
            .within("restoring users and roles")
            .hint("grant the account the role `restore`, or leave them out with --exclude mongodb/./users")),
    }
}

async fn merge_through(
    connection: &Connection,
    users: &[&[u8]],
    roles: &[&[u8]],
    existing: Existing,
    own: Option<&str>,
) -> Result<(), Failure> {
    // Whether it can at all is asked before anything is dropped.
    run_merge(connection, "", "")
        .await
        .or_else(|failure| match failure {
            failure if failure.is_unknown_command() || failure.is_denied() => Err(failure),
            _ => Ok(()),
        })?;
    for (name, documents) in [(USERS, users), (ROLES, roles)] {
        let _ = connection
            .run("admin", Writing::new().text("drop", name))
            .await;
        if documents.is_empty() {
            continue;
        }
        let command = Writing::new()
            .text("insert", name)
            .documents("documents", documents.iter().copied());
        let answer = connection.run("admin", command).await?;
        if answer.contains_key("writeErrors") {
            let error = Error::new(
                ErrorKind::Unreachable,
                format!("the server refuses them: {answer}"),
            );
            return Err(Failure { code: None, error });
        }
    }
    if existing == Existing::Replace {
        drop_existing(connection, own).await?;
    }
    let (users, roles) = (!users.is_empty(), !roles.is_empty());
    run_merge(
        connection,
        if users { "admin.bk_restored_users" } else { "" },
        if roles { "admin.bk_restored_roles" } else { "" },
    )
    .await
}

async fn run_merge(connection: &Connection, users: &str, roles: &str) -> Result<(), Failure> {
    let command = Writing::new()
        .int("_mergeAuthzCollections", 1)
        .text("tempUsersCollection", users)
        .text("tempRolesCollection", roles)
        .text("db", "")
        .flag("drop", false);
    connection.run("admin", command).await.map(drop)
}

/// All users but the one in use, and all roles that people made.
async fn drop_existing(connection: &Connection, own: Option<&str>) -> Result<(), Failure> {
    for (collection, command, name) in [
        ("system.users", "dropUser", "user"),
        ("system.roles", "dropRole", "role"),
    ] {
        for document in connection
            .list("admin", Writing::new().text("find", collection))
            .await?
        {
            let (Some(id), Some(database), Some(name)) = (
                bson::text(&document, "_id"),
                bson::text(&document, "db"),
                bson::text(&document, name),
            ) else {
                continue;
            };
            if Some(id) != own {
                connection
                    .run(database, Writing::new().text(command, name))
                    .await?;
            }
        }
    }
    Ok(())
}

/// `database.user` of the connection.
async fn in_use(connection: &Connection) -> Result<Option<String>> {
    let answer = match connection
        .run("admin", Writing::new().int("connectionStatus", 1))
        .await
    {
        Ok(answer) => answer,
        Err(failure) if failure.code.is_some() => return Ok(None),
        Err(failure) => return Err(failure.error),
    };
    let user = answer
        .get_document("authInfo")
        .and_then(|info| info.get_array("authenticatedUsers"))
        .ok()
        .and_then(|users| users.first())
        .and_then(Bson::as_document);
    Ok(user.and_then(|user| {
        Some(format!(
            "{}.{}",
            user.get_str("db").ok()?,
            user.get_str("user").ok()?
        ))
    }))
}
