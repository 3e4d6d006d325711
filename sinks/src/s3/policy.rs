//! The least that a credential needs, in the language of policies.

use super::store::Store;
use serde_json::json;

impl Store {
    /// A policy for the key that backs up: it writes and reads, and can neither delete nor tag, so that whoever steals it destroys nothing.
    pub fn policy(&self) -> String {
        let bucket = format!("arn:aws:s3:::{}", self.bucket());
        let archives = format!("{bucket}/{}*", self.prefix);
        let mut write = vec![
            "s3:PutObject",
            "s3:GetObject",
            "s3:GetObjectVersion",
            "s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts",
        ];
        if self.settings.object_lock.is_some() {
            write.push("s3:PutObjectRetention");
        }
        let policy = json!({
            "Version": "2012-10-17",
            "Statement": [
                { "Sid": "Write", "Effect": "Allow", "Action": write, "Resource": [archives] },
                {
                    "Sid": "Look", "Effect": "Allow",
                    "Action": ["s3:ListBucket", "s3:ListBucketVersions", "s3:ListBucketMultipartUploads", "s3:GetBucketVersioning", "s3:GetLifecycleConfiguration"],
                    "Resource": [bucket]
                },
                {
                    "Sid": "NeverDelete", "Effect": "Deny",
                    "Action": [
                        "s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutObjectTagging", "s3:PutObjectVersionTagging",
                        "s3:DeleteObjectTagging", "s3:DeleteObjectVersionTagging", "s3:PutObjectAcl", "s3:PutObjectVersionAcl"
                    ],
                    "Resource": [archives]
                }
            ]
        });
        format!("{policy:#}")
    }
}
