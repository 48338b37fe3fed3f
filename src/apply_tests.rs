use super::*;

#[test]
fn defaults_of_the_server_are_not_a_difference_but_edits_are() {
    let wish = json!({"spec": {"ports": [{"port": 1}], "type": "ClusterIP"}, "empty": {}});
    let live = json!({
        "spec": {"ports": [{"port": 1, "nodePort": 0}], "type": "ClusterIP", "clusterIP": "x"},
        "status": {}
    });
    assert!(contains(&live, &wish));
    for edited in [
        json!({"spec": {"ports": [{"port": 2}], "type": "ClusterIP"}}),
        json!({"spec": {"ports": [{"port": 1}, {"port": 3}], "type": "ClusterIP"}}),
        json!({"spec": {"ports": [{"port": 1}]}}),
    ] {
        assert!(!contains(&edited, &wish), "{edited}");
    }
}

#[test]
fn a_status_loses_what_is_gone_at_every_depth() {
    let old = json!({"validators": 4, "foreign": 1, "at": {"a": 1, "b": 2}, "all": [1]});
    let mut patch = json!({"validators": 3, "at": {"a": 1}, "all": []});
    null_what_is_gone(&old, &mut patch);
    let expected = json!({"validators": 3, "foreign": null, "at": {"a": 1, "b": null}, "all": []});
    assert_eq!(patch, expected);
}

#[test]
fn ours_is_what_is_recorded_or_marked_with_this_network() {
    use k8s_openapi::api::core::v1::ConfigMap;
    let mut object = ConfigMap::default();
    object.metadata.uid = Some("u1".into());
    assert!(!is_ours(&object, None, "n1"));
    assert!(is_ours(&object, Some("u1"), "n1"));
    assert!(!is_ours(&object, Some("u2"), "n1"));
    let labels = object.labels_mut();
    labels.insert(labels::MANAGED_BY.into(), labels::OPERATOR.into());
    labels.insert(labels::NETWORK_ID.into(), "n1".into());
    assert!(is_ours(&object, None, "n1"));
    assert!(!is_ours(&object, None, "n2"));
}

#[test]
fn what_our_objects_own_is_ours_without_labels() {
    use k8s_openapi::api::core::v1::ConfigMap;
    let owner = |uid: &str| OwnerReference { uid: uid.into(), ..OwnerReference::default() };
    let mut object = ConfigMap::default();
    assert!(!is_owned_by(&object, &[owner("node")]));
    object.metadata.owner_references = Some(vec![owner("node")]);
    assert!(is_owned_by(&object, &[owner("node")]));
    assert!(!is_owned_by(&object, &[owner("other")]) && !is_owned_by(&object, &[]));
}

#[test]
fn lost_marks_are_put_back_and_strangers_stay() {
    let meta = |labels: &[&str], finalizers: &[&str]| ObjectMeta {
        labels: Some(labels.iter().map(|key| ((*key).to_owned(), "v".to_owned())).collect()),
        finalizers: Some(finalizers.iter().map(|name| (*name).to_owned()).collect()),
        ..ObjectMeta::default()
    };
    let desired = meta(&["a"], &["keep"]);
    assert_eq!(missing_marks(&meta(&["a", "b"], &["other", "keep"]), &desired), None);
    let patch = missing_marks(&meta(&["b"], &["other"]), &desired).unwrap();
    assert_eq!(patch["labels"], json!({"a": "v"}));
    assert_eq!(patch["finalizers"], json!(["other", "keep"]));
    let mut going = meta(&[], &[]);
    going.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
    assert_eq!(missing_marks(&going, &desired), None);
}
