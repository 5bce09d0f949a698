use super::*;

fn parsed(text: &str, profile: &str) -> Vec<(String, String)> {
    parse("f", text, profile).unwrap().into_iter().collect()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn variables_are_read_as_a_service_manager_reads_them() {
    let text = "# keys\n; of the vault\n\nAWS_ACCESS_KEY_ID=one\nexport AWS_SECRET_ACCESS_KEY='a=b c'\nAWS_REGION = \"x\"\n";
    let expected =
        [pair("AWS_ACCESS_KEY_ID", "one"), pair("AWS_REGION", "x"), pair("AWS_SECRET_ACCESS_KEY", "a=b c")];
    assert_eq!(parsed(text, "default"), expected);
}

#[test]
fn of_profiles_the_named_one_counts() {
    let text =
        "[default]\naws_access_key_id = one\n[profile two]\naws_access_key_id = two\naws_session_token=t\n";
    assert_eq!(parsed(text, "default"), [pair("aws_access_key_id", "one")]);
    assert_eq!(parsed(text, "two"), [pair("aws_access_key_id", "two"), pair("aws_session_token", "t")]);
    let missing = parse("f", text, "three").unwrap_err();
    assert!(missing.message.contains("three") && missing.remedy.contains("AWS_PROFILE"), "{missing}");
}

#[test]
fn a_line_that_says_nothing_is_named_and_not_quoted() {
    let error = parse("/etc/keys", "AWS_ACCESS_KEY_ID=one\nhunter2\n", "default").unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::InvalidInput, "/etc/keys"));
    assert!(error.message.contains("line 2") && !error.to_string().contains("hunter2"), "{error}");
    let missing = read(Path::new("/nowhere/keys"), None).unwrap_err();
    assert!(missing.remedy.contains("credentials_file"), "{missing}");
}
