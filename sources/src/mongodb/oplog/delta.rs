//! What an update did to a document, as the log says it: form 2 (`diff`, since MongoDB 5.0), form 1 (`$set`, `$unset`), and the form of change
//! streams (`updatedFields`, `removedFields`, `truncatedArrays`), which `SecantusDB` has in its log.
//!
//! Form 2: `d` deletes fields, `u` gives fields other values, `i` appends fields, `sNAME` goes into a field; in an array (`a: true`) `l` is the
//! new length, `uN` and `sN` are about the place N. (mongodb/mongo, `src/mongo/db/update/document_diff_applier.cpp`)

use crate::mongodb::bson::{self, EMPTY, Element, Writing, kind};
use bk_core::error::{Result, unsupported};

/// Longest array that is filled up with nulls.
const LONGEST_ARRAY: usize = 1 << 21;
/// Names in a path.
const LONGEST_PATH: usize = 200;
/// The largest document, and what the log puts around it.
const LARGEST_BYTES: usize = (16 << 20) + (16 << 10);

/// Whether what an update's entry holds changes a document, and does not replace it.
pub fn is_delta(o: &[u8]) -> bool {
    bson::find(o, b"$v").is_some()
        || bson::elements(o)
            .map_while(Result::ok)
            .next()
            .is_some_and(|first| first.name.starts_with(b"$"))
}

/// The document afterwards.
pub fn apply(document: &[u8], o: &[u8]) -> Result<Vec<u8>> {
    if !bson::is_shallow(document) || !bson::is_shallow(o) || has_long_paths(o) {
        return Err(unsupported(
            "a change in the log nests deeper than documents may",
        ));
    }
    let changed = changed(document, o)?;
    if changed.len() > LARGEST_BYTES {
        return Err(unsupported(
            "a change in the log makes a document larger than documents may be",
        ));
    }
    Ok(changed)
}

/// Whether a path in it leads deeper than documents may nest.
fn has_long_paths(o: &[u8]) -> bool {
    let dots = |name: &[u8]| name.split(|byte| *byte == b'.').count();
    let mut lists = vec![o];
    lists.extend(
        bson::elements(o)
            .map_while(Result::ok)
            .filter_map(|e| e.document()),
    );
    if let Some(diff) = bson::inner(o, "diff") {
        lists.extend(
            bson::elements(diff)
                .map_while(Result::ok)
                .filter_map(|e| e.document()),
        );
    }
    lists.into_iter().any(|list| {
        bson::elements(list).map_while(Result::ok).any(|e| {
            dots(e.name) > LONGEST_PATH
                || e.text()
                    .is_some_and(|path| dots(path.as_bytes()) > LONGEST_PATH && list != o)
        })
    })
}

fn changed(document: &[u8], o: &[u8]) -> Result<Vec<u8>> {
    if let Some(diff) = bson::inner(o, "diff") {
        return match bson::inner(diff, "updatedFields") {
            Some(updated) => described(document, updated, diff),
            None => object(document, diff),
        };
    }
    let mut out = document.to_vec();
    for change in bson::elements(o) {
        let change = change?;
        match (change.name, change.document()) {
            (b"$v", _) => {}
            (b"$set", Some(fields)) => {
                for field in bson::elements(fields) {
                    let field = field?;
                    out = set(&out, field.name, &field)?;
                }
            }
            (b"$unset", Some(fields)) => {
                for field in bson::elements(fields) {
                    out = unset(&out, field?.name)?;
                }
            }
            (name, _) => {
                let name = String::from_utf8_lossy(name).into_owned();
                return Err(unsupported(format!("an update with `{name}` is not known")));
            }
        }
    }
    Ok(out)
}

/// As change streams describe it.
fn described(document: &[u8], updated: &[u8], diff: &[u8]) -> Result<Vec<u8>> {
    let mut out = document.to_vec();
    for array in bson::inner(diff, "truncatedArrays")
        .into_iter()
        .flat_map(bson::documents_of)
    {
        let length =
            bson::find(array, b"newSize").and_then(|size| usize::try_from(size.integer()?).ok());
        if let (Some(path), Some(length)) = (bson::text(array, "field"), length) {
            out = truncate(&out, path.as_bytes(), length)?;
        }
    }
    for field in bson::elements(updated) {
        let field = field?;
        out = set(&out, field.name, &field)?;
    }
    for path in bson::inner(diff, "removedFields")
        .into_iter()
        .flat_map(bson::elements)
    {
        out = unset(&out, path?.text().unwrap_or_default().as_bytes())?;
    }
    Ok(out)
}

fn truncate(container: &[u8], path: &[u8], length: usize) -> Result<Vec<u8>> {
    let (head, rest) = split(path);
    let mut out = Writing::with_capacity(container.len());
    for field in bson::elements(container) {
        let field = field?;
        match (field.name == head, rest, field.document()) {
            (true, Some(rest), Some(inner)) => {
                out.push(field.kind, head, &truncate(inner, rest, length)?);
            }
            (true, None, Some(inner)) if field.kind == kind::ARRAY => {
                let mut items = Writing::new();
                for item in bson::elements(inner).take(length) {
                    items.push_element(item?.whole);
                }
                out.push(kind::ARRAY, head, &items.bytes());
            }
            _ => out.push_element(field.whole),
        }
    }
    Ok(out.bytes())
}

fn object(document: &[u8], diff: &[u8]) -> Result<Vec<u8>> {
    let (mut deleted, mut updated, mut inserted) = (EMPTY, EMPTY, EMPTY);
    let mut inside: Vec<(&[u8], &[u8])> = Vec::new();
    for part in bson::elements(diff) {
        let part = part?;
        match (part.name, part.document()) {
            (b"d", Some(fields)) => deleted = fields,
            (b"u", Some(fields)) => updated = fields,
            (b"i", Some(fields)) => inserted = fields,
            ([b's', name @ ..], Some(diff)) => inside.push((name, diff)),
            _ => return Err(not_known(&part)),
        }
    }
    let mut out = Writing::with_capacity(document.len() + diff.len());
    let mut met: Vec<&[u8]> = Vec::new();
    for field in bson::elements(document) {
        let field = field?;
        if bson::find(deleted, field.name).is_some() || bson::find(inserted, field.name).is_some() {
            continue;
        }
        if let Some(new) = bson::find(updated, field.name) {
            met.push(new.name);
            out.push_element(new.whole);
        } else if let Some((_, diff)) = inside.iter().find(|(name, _)| *name == field.name) {
            out.push(field.kind, field.name, &within(&field, diff)?);
        } else {
            out.push_element(field.whole);
        }
    }
    for new in bson::elements(updated) {
        let new = new?;
        if !met.contains(&new.name) {
            out.push_element(new.whole);
        }
    }
    for new in bson::elements(inserted) {
        out.push_element(new?.whole);
    }
    Ok(out.bytes())
}

/// What is not of the kind that the change is for was written later than it, and stays as it is.
fn within(field: &Element<'_>, diff: &[u8]) -> Result<Vec<u8>> {
    let for_array = bson::find(diff, b"a").is_some_and(|flag| flag.truthy());
    match (field.kind, for_array) {
        (kind::DOCUMENT, false) => object(field.value, diff),
        (kind::ARRAY, true) => array(field.value, diff),
        _ => Ok(field.value.to_vec()),
    }
}

fn array(array: &[u8], diff: &[u8]) -> Result<Vec<u8>> {
    let mut items: Vec<(u8, Vec<u8>)> = Vec::new();
    for item in bson::elements(array) {
        let item = item?;
        items.push((item.kind, item.value.to_vec()));
    }
    let mut length = None;
    for part in bson::elements(diff) {
        let part = part?;
        match part.name {
            b"a" => {}
            b"l" => length = part.integer().and_then(|n| usize::try_from(n).ok()),
            [letter @ (b'u' | b's'), place @ ..] => {
                let place: Option<usize> = std::str::from_utf8(place)
                    .ok()
                    .and_then(|text| text.parse().ok());
                let Some(place) = place.filter(|place| *place < LONGEST_ARRAY) else {
                    return Err(not_known(&part));
                };
                if *letter == b'u' {
                    fill(&mut items, place + 1);
                    items[place] = (part.kind, part.value.to_vec());
                } else if let (Some(item), Some(diff)) = (items.get_mut(place), part.document()) {
                    let field = Element {
                        kind: item.0,
                        name: b"",
                        value: &item.1,
                        whole: &[],
                    };
                    item.1 = within(&field, diff)?;
                }
            }
            _ => return Err(not_known(&part)),
        }
    }
    if let Some(length) = length.filter(|length| *length < LONGEST_ARRAY) {
        items.truncate(length);
        fill(&mut items, length);
    }
    Ok(numbered(&items))
}

fn fill(items: &mut Vec<(u8, Vec<u8>)>, length: usize) {
    while items.len() < length {
        items.push((kind::NULL, Vec::new()));
    }
}

fn numbered(items: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = Writing::new();
    for (n, (kind, value)) in items.iter().enumerate() {
        out.push(*kind, n.to_string().as_bytes(), value);
    }
    out.bytes()
}

fn not_known(part: &Element<'_>) -> bk_core::error::Error {
    let name = String::from_utf8_lossy(part.name).into_owned();
    unsupported(format!("a change `{name}` in the log is not known"))
}

/// Form 1: a value at a path with dots; in an array a number is a place.
fn set(container: &[u8], path: &[u8], new: &Element<'_>) -> Result<Vec<u8>> {
    let (head, rest) = split(path);
    let mut out = Writing::with_capacity(container.len() + new.whole.len());
    let mut met = false;
    for field in bson::elements(container) {
        let field = field?;
        if field.name != head {
            out.push_element(field.whole);
            continue;
        }
        met = true;
        match (rest, field.document()) {
            (None, _) => out.push(new.kind, head, new.value),
            (Some(rest), Some(inner)) if field.kind == kind::ARRAY => {
                out.push(kind::ARRAY, head, &set_in_array(inner, rest, new)?);
            }
            (Some(rest), Some(inner)) => out.push(kind::DOCUMENT, head, &set(inner, rest, new)?),
            // It was written later than the change.
            (Some(_), None) => out.push_element(field.whole),
        }
    }
    if !met {
        match rest {
            None => out.push(new.kind, head, new.value),
            Some(rest) => out.push(kind::DOCUMENT, head, &set(EMPTY, rest, new)?),
        }
    }
    Ok(out.bytes())
}

fn set_in_array(array: &[u8], path: &[u8], new: &Element<'_>) -> Result<Vec<u8>> {
    let (head, _) = split(path);
    let place: Option<usize> = std::str::from_utf8(head)
        .ok()
        .and_then(|text| text.parse().ok());
    let length = bson::elements(array).count();
    let Some(place) = place.filter(|place| *place < LONGEST_ARRAY) else {
        return Ok(array.to_vec());
    };
    if place < length {
        return set(array, path, new);
    }
    let mut items: Vec<(u8, Vec<u8>)> = Vec::new();
    for item in bson::elements(array) {
        let item = item?;
        items.push((item.kind, item.value.to_vec()));
    }
    fill(&mut items, place + 1);
    set(&numbered(&items), path, new)
}

fn unset(container: &[u8], path: &[u8]) -> Result<Vec<u8>> {
    let (head, rest) = split(path);
    let mut out = Writing::with_capacity(container.len());
    for field in bson::elements(container) {
        let field = field?;
        match (field.name == head, rest, field.document()) {
            (false, ..) | (true, Some(_), None) => out.push_element(field.whole),
            (true, None, _) => {}
            (true, Some(rest), Some(inner))
                if field.kind == kind::ARRAY && split(rest).1.is_none() =>
            {
                // A place in an array is not taken out of it: it becomes null.
                let mut items = Writing::new();
                for item in bson::elements(inner) {
                    let item = item?;
                    if item.name == rest {
                        items.push(kind::NULL, item.name, &[]);
                    } else {
                        items.push_element(item.whole);
                    }
                }
                out.push(kind::ARRAY, head, &items.bytes());
            }
            (true, Some(rest), Some(inner)) => out.push(field.kind, head, &unset(inner, rest)?),
        }
    }
    Ok(out.bytes())
}

fn split(path: &[u8]) -> (&[u8], Option<&[u8]>) {
    match path.iter().position(|byte| *byte == b'.') {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mongodb::bson::{Document, doc};

    fn raw(document: Document) -> Vec<u8> {
        document.to_vec().unwrap()
    }

    #[track_caller]
    fn becomes(before: Document, o: Document, after: Document) {
        let got = apply(&raw(before), &raw(o.clone())).unwrap();
        assert_eq!(Document::from_reader(&got[..]).unwrap(), after);
        assert_eq!(got, raw(after.clone()));
        assert!(is_delta(&raw(o.clone())));
        // A change that is seen in the data already is made again and changes nothing.
        assert_eq!(apply(&got, &raw(o)).unwrap(), raw(after));
    }

    #[test]
    fn fields_are_deleted_changed_and_appended() {
        becomes(
            doc! {"_id": 1, "a": 1, "b": 2, "c": {"x": 1, "y": [1, 2, 3]}},
            doc! {"$v": 2, "diff": {"d": {"a": false}, "u": {"b": "two"}, "i": {"n": 1}, "sc": {"u": {"x": 9}, "sy": {"a": true, "l": 2, "u1": 7}}}},
            doc! {"_id": 1, "b": "two", "c": {"x": 9, "y": [1, 7]}, "n": 1},
        );
    }

    #[test]
    fn arrays_grow_with_nulls_and_change_inside() {
        becomes(
            doc! {"_id": 1, "a": [{"k": 1}, 2]},
            doc! {"$v": 2, "diff": {"sa": {"a": true, "s0": {"i": {"m": 5}}, "u3": "new"}}},
            doc! {"_id": 1, "a": [{"k": 1, "m": 5}, 2, null, "new"]},
        );
        becomes(
            doc! {"_id": 1, "a": [1]},
            doc! {"$v": 2, "diff": {"sa": {"a": true, "l": 3}}},
            doc! {"_id": 1, "a": [1, null, null]},
        );
    }

    #[test]
    fn a_field_that_is_inserted_again_goes_to_the_end() {
        becomes(
            doc! {"_id": 1, "a": 1, "b": 2},
            doc! {"$v": 2, "diff": {"i": {"a": 3}}},
            doc! {"_id": 1, "b": 2, "a": 3},
        );
    }

    #[test]
    fn the_older_form_sets_and_unsets_by_path() {
        becomes(
            doc! {"_id": 1, "a": {"b": 1}, "c": [1, {"d": 2}], "e": 5},
            doc! {"$v": 1, "$set": {"a.b": 2, "a.n": 3, "c.1.d": 4, "c.3": 9, "f.g": 1}, "$unset": {"e": true}},
            doc! {"_id": 1, "a": {"b": 2, "n": 3}, "c": [1, {"d": 4}, null, 9], "f": {"g": 1}},
        );
        becomes(
            doc! {"_id": 1, "c": [1, 2]},
            doc! {"$unset": {"c.0": true}},
            doc! {"_id": 1, "c": [null, 2]},
        );
    }

    #[test]
    fn the_form_of_change_streams_is_understood() {
        becomes(
            doc! {"_id": 1, "a": 1, "b": {"x": 1, "y": [1, 2, 3]}, "c": 5},
            doc! {"$v": 2, "diff": {"updatedFields": {"a": 2, "b.y.0": 9, "n.m": 1}, "removedFields": ["c"], "truncatedArrays": [{"field": "b.y", "newSize": 2}]}},
            doc! {"_id": 1, "a": 2, "b": {"x": 1, "y": [9, 2]}, "n": {"m": 1}},
        );
    }

    #[test]
    fn what_is_not_known_is_an_error_and_replacements_are_no_deltas() {
        assert!(
            apply(
                &raw(doc! {"_id": 1}),
                &raw(doc! {"$v": 2, "diff": {"z": {"a": 1}}})
            )
            .is_err()
        );
        assert!(apply(&raw(doc! {"_id": 1}), &raw(doc! {"$inc": {"a": 1}})).is_err());
        assert!(!is_delta(&raw(doc! {"_id": 1, "a": 1})));
    }
}
