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

/// Merges users and roles. With `replace` those that the archive has not go, but for the account in use and the target's roles.
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
    let mut roles: Vec<&[u8]> = roles.iter().map(Vec::as_slice).collect();
    if users.is_empty() && roles.is_empty() {
        return Ok(Merged::Done);
    }
    let mut users = users;
    // With `replace` what is not among them goes, but never the account in use, nor a role that it may have.
    let (own_users, own_roles) = match existing {
        Existing::Replace => kept(connection, own.as_deref()).await?,
        _ => (Vec::new(), Vec::new()),
    };
    let is_new = |role: &&[u8]| {
        !roles
            .iter()
            .any(|r| bson::text(r, "_id") == bson::text(role, "_id"))
    };
    let own_roles: Vec<&[u8]> = own_roles.iter().map(Vec::as_slice).filter(is_new).collect();
    roles.extend(own_roles);
    users.extend(own_users.iter().map(Vec::as_slice));
    let done = merge_through(connection, &users, &roles, existing).await;
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
) -> Result<(), Failure> {
    // Whether it can at all is asked before anything is dropped.
    run_merge(connection, "", "", Existing::Merge)
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
    let (users, roles) = (!users.is_empty(), !roles.is_empty());
    run_merge(
        connection,
        if users { "admin.bk_restored_users" } else { "" },
        if roles { "admin.bk_restored_roles" } else { "" },
        existing,
    )
    .await
}

async fn run_merge(
    connection: &Connection,
    users: &str,
    roles: &str,
    existing: Existing,
) -> Result<(), Failure> {
    let command = Writing::new()
        .int("_mergeAuthzCollections", 1)
        .text("tempUsersCollection", users)
        .text("tempRolesCollection", roles)
        .text("db", "")
        .flag("drop", existing == Existing::Replace);
    connection.run("admin", command).await.map(drop)
}

/// The account in use and the roles that people made, as the target has them: they go into the merge as they are, so that it leaves them.
async fn kept(
    connection: &Connection,
    own: Option<&str>,
) -> Result<(Vec<Vec<u8>>, Vec<Vec<u8>>), Failure> {
    let Some(own) = own else {
        return Ok((Vec::new(), Vec::new()));
    };
    let which = Writing::new().text("_id", own).bytes();
    let find = Writing::new()
        .text("find", "system.users")
        .document("filter", &which);
    let users = connection.list("admin", find).await?;
    let roles = connection
        .list("admin", Writing::new().text("find", "system.roles"))
        .await?;
    Ok((users, roles))
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
