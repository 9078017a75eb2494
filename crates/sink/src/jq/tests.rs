//! Filters on values, compared with what jq answers.

use super::*;

fn filter(text: &str) -> Filter {
    Filter::compile("processing.map", text).unwrap()
}

fn run(text: &str, input: &str) -> Result<Vec<String>, JqFailed> {
    let outputs = filter(text).run(parse(input.as_bytes()).unwrap(), &Globals::default())?;
    let texts = outputs.iter().map(|output| write(output).unwrap());
    Ok(texts
        .map(|text| String::from_utf8(text.to_vec()).unwrap())
        .collect())
}

/// Filters and inputs whose outputs must be those of the real program.
const PAIRS: &[(&str, &str)] = &[
    (
        ".",
        r#"{"b":1,"a":[1.0,2.50,-0.0,1e2,1e17,1e-5,0.0001,"\u007f\u0001é\n\t\"\\/"]}"#,
    ),
    (
        ".",
        "[0.1,1e16,1e15,123456789.123456789,5e-324,1.7976931348623157e308,3.00]",
    ),
    (".a.b.c", r#"{"a":{"b":{"c":"x"}}}"#),
    (".a?", "[1]"),
    (".[1:3]", "[1,2,3,4]"),
    (".[-1]", "[1,2,3]"),
    (".[2:]", r#""abcdef""#),
    (".a,.b", r#"{"a":1,"b":2}"#),
    (".[]", r#"{"a":1,"b":[2]}"#),
    ("..", r#"{"a":[1,{"b":2}]}"#),
    ("[.[]|.+1]", "[1,2.5,3]"),
    (".a+.b", r#"{"a":0.1,"b":0.2}"#),
    (".a/.b", r#"{"a":6,"b":3}"#),
    (".a/.b", r#"{"a":1,"b":3}"#),
    (".a%.b", r#"{"a":7,"b":3}"#),
    (".a-.b", r#"{"a":[1,2,3,2],"b":[2]}"#),
    (r#""x:\(.a) \(.b)""#, r#"{"a":1.50,"b":[1.0,null]}"#),
    ("{a,c:.b}", r#"{"a":1,"b":2}"#),
    ("{(.k):.v}", r#"{"k":"name","v":1}"#),
    ("{a:(1,2)}", "null"),
    ("keys", r#"{"b":1,"a":2}"#),
    ("keys_unsorted", r#"{"b":1,"a":2}"#),
    ("length", r#"{"b":1,"a":2}"#),
    ("map(length)", r#"["é",[1],{},null,-3]"#),
    ("to_entries", r#"{"b":1,"a":2}"#),
    (
        "from_entries",
        r#"[{"key":"a","value":1},{"key":"b","value":2}]"#,
    ),
    ("with_entries(.value+=1)", r#"{"b":1,"a":2}"#),
    ("map(select(.>1))", "[1,2,3]"),
    ("if .a then 1 elif .b then 2 else 3 end", r#"{"b":true}"#),
    (".a // \"none\"", r#"{"a":null}"#),
    ("try error(\"x\") catch .", "null"),
    ("[.[]|tonumber?]", r#"["1","x","2.50"]"#),
    ("tostring", "[1.0,\"a\"]"),
    ("[.[]|tostring]", r#"[1.0,"a",null,{"a":1e3}]"#),
    ("tojson|fromjson", r#"{"a":[1,2.5]}"#),
    ("type", "[1]"),
    ("[.[]|type]", r#"[1,"a",null,true,[],{}]"#),
    ("sort", r#"[3,"a",null,1,[2],{"a":1},true,false]"#),
    ("sort_by(.a)", r#"[{"a":2},{"a":1}]"#),
    ("group_by(.a)", r#"[{"a":2,"b":1},{"a":1},{"a":2}]"#),
    ("unique", "[3,1,2,1,3]"),
    ("unique_by(.a)", r#"[{"a":2},{"a":1},{"a":2}]"#),
    ("min,max,add", "[3,1,2]"),
    ("min_by(.a),max_by(.a)", r#"[{"a":2},{"a":1}]"#),
    ("reverse", "[1,2,3]"),
    ("contains([\"a\"])", r#"["abc"]"#),
    ("inside([1,2])", "[1]"),
    ("index(\"b\"),rindex(\"b\")", r#""abcb""#),
    ("startswith(\"a\"),endswith(\"a\")", r#""abc""#),
    ("ltrimstr(\"a\"),rtrimstr(\"c\")", r#""abc""#),
    ("split(\",\")", r#""a,b,,c""#),
    ("join(\"-\")", r#"["a",1,null,true,2.50]"#),
    ("ascii_downcase,ascii_upcase", r#""aBcÄ""#),
    ("explode|implode", r#""aé😀""#),
    ("test(\"b+\")", r#""abbc""#),
    ("[match(\"b\";\"g\").offset]", r#""abbc""#),
    ("capture(\"(?<x>[a-z])(?<n>[0-9]+)\")", r#""a12""#),
    ("sub(\"b\";\"x\"),gsub(\"b\";\"y\")", r#""abbc""#),
    ("[scan(\"[0-9]+\")]", r#""a1b22""#),
    ("@base64,@uri,@html,@sh,@json,@text", r#""a b<&\"é""#),
    ("@base64d", r#""aGVsbG8=""#),
    ("@csv,@tsv", r#"[1,"a\"b\tc",null,true,2.50]"#),
    ("@base64 \"x\\(.)y\"", r#""ab""#),
    ("floor,sqrt,(.*.)", "6.25"),
    ("[.[]|floor,round,ceil]", "[1.5,-1.5,2]"),
    ("pow(.;2),log2", "8"),
    ("[range(5)],[range(2;8;3)]", "null"),
    ("reduce .[] as $x (0;.+$x)", "[1,2,3]"),
    ("[foreach .[] as $x (0;.+$x)]", "[1,2,3]"),
    ("[foreach .[] as $x (0;.+$x;[$x,.])]", "[1,2]"),
    ("[limit(3;.[])],first(.[]),nth(1;.[])", "[1,2,3,4]"),
    ("[.[]|until(.>100;.*2)]", "[1,7]"),
    ("[recurse(if .<3 then .+1 else empty end)]", "0"),
    ("[while(.<50;.*2)]", "1"),
    ("def f(x): x*2; def g: f(.); [.[]|g]", "[1,2]"),
    ("def fac: if .<=1 then 1 else .*(.-1|fac) end; fac", "10"),
    (". as [$a,{b:$c}]|$a+$c", r#"[1,{"b":2}]"#),
    ("label $f|.[]|if .>2 then break $f else . end", "[1,2,3]"),
    ("paths", r#"{"a":[1,{"b":2}]}"#),
    ("[leaf_paths]", r#"{"a":[1,{"b":2}]}"#),
    ("getpath([\"a\",1])", r#"{"a":[1,2]}"#),
    ("setpath([\"a\",\"b\"];1)", "{}"),
    ("delpaths([[\"a\"],[\"b\",0]])", r#"{"a":1,"b":[1,2]}"#),
    ("del(.a,.b[1])", r#"{"a":1,"b":[1,2]}"#),
    (".a=1|.b+=2|.c|=.+1|.d//=4|.e*=2", r#"{"b":1,"c":1,"e":3}"#),
    (".[]|=.+1", "[1,2]"),
    ("map_values(.+1)", r#"{"a":1}"#),
    (
        "walk(if type==\"number\" then .+1 else . end)",
        r#"{"a":[1,{"b":2}]}"#,
    ),
    ("flatten,flatten(1)", "[1,[2,[3]]]"),
    ("transpose", "[[1,2],[3]]"),
    ("any,all", "[true,false]"),
    ("any(.[];.>1),all(.[];.>0)", "[1,2]"),
    ("has(\"a\"),has(\"b\")", r#"{"a":1}"#),
    ("[.[]|not]", "[true,false,null,1]"),
    ("[.[]|. and true, . or false]", "[true,null]"),
    ("{\"a\":1}*{\"a\":{\"b\":2}}", "null"),
    (". * 3", r#""ab""#),
    ("todate,(todate|fromdate)", "1700000000"),
    ("strftime(\"%Y-%m-%dT%H:%M:%SZ\")", "1700000000"),
    ("gmtime|mktime", "1700000000"),
    ("1,null,\"a\"|values", "null"),
    ("[.[]|numbers,strings]", r#"[1,"a",null]"#),
    ("nan|isnan", "null"),
    ("[infinite,-infinite,nan]", "null"),
    ("input_line_number?", "null"),
    ("tojson", "[1.10,1e3,1000000000000000]"),
    ("splits(\", *\")", r#""a, b,c""#),
    (".a.b.c=1|.x.y+=1|.l|=.m", "{}"),
    (".k as $k|.[$k].z=1", r#"{"k":"x"}"#),
    ("[paths(type==\"number\")]", r#"{"a":[1,{"b":2}]}"#),
    ("combinations", "[[1,2],[3,4]]"),
    ("[.[]|@text]", "[1.0,\"a\"]"),
    ("isempty(.[])", "[]"),
    ("env|type", "null"),
];

/// Rows above in which we are other than jq on purpose, or whose filter is refused.
const REFUSED: &[&str] = &["env|type", "input_line_number?"];

#[test]
fn outputs_are_those_of_jq() {
    let real = std::process::Command::new("jq").arg("--version").output();
    let Ok(real) = real else {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "install jq");
        eprintln!("SKIPPED outputs_are_those_of_jq: jq is not installed");
        return;
    };
    assert!(real.status.success());
    let mut wrong = Vec::new();
    for (text, input) in PAIRS {
        if REFUSED.contains(text) {
            assert!(Filter::compile("processing.map", text).is_err(), "{text}");
            continue;
        }
        let theirs = jq(text, input);
        let ours = match run(text, input) {
            Ok(lines) => lines.join("\n"),
            Err(failed) => format!("{failed:?}"),
        };
        if ours.trim() != theirs.trim() {
            wrong.push(format!(
                "{text}  on  {input}\n  jq:   {theirs:?}\n  ours: {ours:?}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn jq(text: &str, input: &str) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = std::process::Command::new("jq")
        .args(["-c", text])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    if output.status.success() {
        text
    } else {
        format!("{text}{}", String::from_utf8_lossy(&output.stderr))
    }
}

#[test]
fn what_does_not_end_is_ended() {
    let cases = [
        ("def f: f; f", "Jq.TooManySteps"),
        ("def f: 1 + f; f", "Jq.TooDeep"),
        ("def f: [f]; f", "Jq.TooDeep"),
        ("def f: f | f; f", "Jq.TooDeep"),
        ("def f($x): f([$x]); f(1)", "Jq.TooDeep"),
        ("def f(g): def r: [g] | r; r; f(.)", "Jq.TooDeep"),
        ("repeat(empty)", "Jq.TooManySteps"),
        ("[range(infinite)] | length", "Jq.TooManySteps"),
        ("first(range(infinite) | select(. < 0))", "Jq.TooManySteps"),
        ("try repeat(error) catch 1", "ok"),
        ("def f: try error catch f; f", "Jq.Too"),
        ("def f: (try f catch 1), f; f", "Jq.Too"),
        ("reduce range(1000000) as $i (1; [.])", "Jq.TooDeep"),
        ("reduce range(1000000) as $i ({}; .a = .)", "Jq.TooDeep"),
        (
            "reduce range(1000000) as $i ([1]; group_by(1))",
            "Jq.TooDeep",
        ),
        ("reduce range(60) as $i (\"xx\"; . + .)", "Jq.Too"),
        (
            "reduce range(60) as $i ({a:\"xx\"}; .a += .a)",
            "Jq.TooLarge",
        ),
        ("reduce range(60) as $i ([1]; . + .)", "Jq.Too"),
        ("reduce range(60) as $i (1; [., .])", "Jq.Too"),
        ("reduce range(99) as $i (\"\\\"\"; @json)", "Jq.Too"),
        ("\"x\" * 1000000000000", "Jq.TooLarge"),
        ("{a: \"x\"} | .a *= 1000000000000", "Jq.TooLarge"),
        ("\"x\" * 10000000000000000000000", "Jq.TooLarge"),
        ("reduce range(100000) as $i (3; . * .)", "ok"),
        ("setpath([range(100000) | \"a\"]; 1)", "Jq.Too"),
        ("(\"[\" * 100000) | fromjson", "Jq.Failed"),
        ("range(1001)", "Jq.TooManyOutputs"),
        (
            "[range(300)] | [.[] as $a | .[] as $b | .[] as $c | 1] | length",
            "Jq.TooManySteps",
        ),
        ("path(repeat(.))", "Jq.Too"),
        ("path(def f: f; f)", "Jq.TooManySteps"),
        ("(def f: f; f) |= 1", "Jq.Too"),
        ("-9223372036854775808 | length", "Jq"),
        (".a.b", "ok"),
        ("error", "Jq.Failed"),
        ("error({a: 1})", "Jq.Failed"),
    ];
    for (text, code) in cases {
        let outcome = run(text, "null");
        let got = outcome
            .as_ref()
            .map_or_else(JqFailed::code, |_outputs| "ok");
        assert!(
            got.starts_with(code) || (code == "Jq" && got == "ok"),
            "{text}: {outcome:?}"
        );
    }
}

#[test]
fn a_filter_that_cannot_be_is_refused_with_its_place() {
    let cases = [
        (".a | ", "term expected at the end"),
        ("(.a", "closing parenthesis expected at the end"),
        (
            ".\"é\" | foo(1)",
            "undefined filter foo at character 8, before \"foo\"",
        ),
        ("$x", "undefined variable $x at character 1, before \"$x\""),
        ("env", "which delivery streams do not have"),
        ("$ENV", "which delivery streams do not have"),
        ("input", "which delivery streams do not have"),
        ("[inputs]", "which delivery streams do not have"),
        ("halt", "which delivery streams do not have"),
        ("localtime", "which delivery streams do not have"),
        (
            "def f(g): f([g]); f(1)",
            "f hands a filter to itself at character 11",
        ),
        (
            "def f(g): def h(x): {a: f(x)}; h(g); f(1)",
            "f hands a filter to itself",
        ),
        ("import \"a\" as a; .", "expected"),
        (".a ]", "expected"),
    ];
    for (text, reason) in cases {
        let refused = Filter::compile("processing.filter", text).unwrap_err();
        assert_eq!(refused.setting, "processing.filter");
        assert!(refused.reason.contains(reason), "{text}: {refused}");
    }
}

/// What is long or deep is refused, or runs on a stack as threads have it.
#[test]
fn long_filters_do_no_harm() {
    let deep = |levels: usize| {
        [
            ". | ".repeat(levels) + ".",
            "[".repeat(levels) + &"]".repeat(levels),
            "-".repeat(levels) + "1",
            "1+(".repeat(levels) + "1" + &")".repeat(levels),
            "1*(".repeat(levels) + "1" + &")".repeat(levels),
            ".==(".repeat(levels) + "1" + &")".repeat(levels),
            "try ".repeat(levels) + "1",
            "if . then 1 else ".repeat(levels) + "1" + &" end".repeat(levels),
            "if . then 1".to_owned() + &" elif . then 1".repeat(levels) + " else 1 end",
            "1 as $x | ".repeat(levels) + "$x",
            "\"\\(".repeat(levels) + "1" + &")\"".repeat(levels),
            "{a:".repeat(levels) + "1" + &"}".repeat(levels),
            "{a: 1".to_owned() + &", b: 1".repeat(levels) + "}",
            ".a".repeat(levels),
            "(.a".to_owned() + &".a".repeat(levels) + " | .b) |= 1",
            "path(.a".to_owned() + &".a".repeat(levels) + ")",
            "1".to_owned() + &", 1".repeat(levels),
            "null".to_owned() + &" // null".repeat(levels),
            "map(".repeat(levels) + "." + &")".repeat(levels),
            "first(".repeat(levels) + "." + &")".repeat(levels),
            "reduce . as $x (".repeat(levels) + "0" + &"; .)".repeat(levels),
            "label $x | ".repeat(levels) + "1",
        ]
    };
    let long = [
        ".a".repeat(3000),
        "x".repeat(9000),
        "(".repeat(5000),
        "-".repeat(7000) + "1",
    ];
    for text in &long {
        assert!(Filter::compile("processing.filter", text).is_err());
    }
    for text in [60, 100, MAX_FILTER_DEPTH - 2, MAX_FILTER_DEPTH]
        .into_iter()
        .flat_map(deep)
    {
        let start: String = text.chars().take(24).collect();
        match Filter::compile("processing.filter", &text) {
            Err(refused) => assert!(
                refused.reason.contains("the filter has more than"),
                "{refused}"
            ),
            Ok(filter) => {
                if let Err(failed) = filter.run(Val::Null, &Globals::default()) {
                    assert!(
                        ["Jq.TooDeep", "Jq.Failed"].contains(&failed.code()),
                        "{start}"
                    );
                }
            }
        }
    }
    assert!(
        deep(60)
            .iter()
            .all(|text| Filter::compile("processing.filter", text).is_ok())
    );
}

#[test]
fn now_is_noticed() {
    for (text, deterministic) in [
        (".a", true),
        ("now", false),
        ("{a: [.b | if . then now else 1 end]}", false),
        ("\"\\(now)\"", false),
        ("def f: now; f", false),
        (".now | {now: .}", true),
        ("\"now\"", true),
        ("todate", true),
        ("input_filename?", true),
    ] {
        if let Ok(filter) = Filter::compile("processing.map", text) {
            assert_eq!(filter.is_deterministic(), deterministic, "{text}");
        }
    }
    assert_eq!(run("now > 1e9", "null").unwrap(), ["true"]);
}

#[test]
fn variables_say_where_a_record_comes_from() {
    let unit = crate::unit::tests::unit(b"{}");
    let filter = filter("[$partition_key, $shard, $sequence_number, $arrival_time, $headers]");
    assert!(filter.uses_globals());
    let outputs = filter.run(Val::Null, &Globals::of(&unit)).unwrap();
    assert_eq!(
        write(&outputs[0]).unwrap(),
        r#"["pk",2,"7","2026-03-01T12:34:56.789012Z",{"name":"value"}]"#
    );
}

#[test]
fn filters_are_shared_among_threads() {
    fn shared<T: Send + Sync>(_of: &T) {}
    shared(&filter("."));
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn compiling_anything_never_panics(text in "[.\\[\\]{}()|,a-c$@\"\\\\ :;=+*/0-9-]{0,24}") {
        if let Ok(filter) = Filter::compile("processing.map", &text) {
            let _ = filter.first(parse(b"{\"a\":[1,\"b\"]}").unwrap(), &Globals::default());
        }
    }
}

/// The module's list of differences, kept true.
#[test]
fn where_we_are_other_than_jq() {
    for (text, input, ours) in [
        (".", "12345678901234567890", "12345678901234567890"),
        ("[(1,2) * (3,4)]", "null", "[3,4,6,8]"),
        ("[nan < nan]", "null", "[true]"),
        ("[.[] |= (1,2)]", "[0]", "[[1,2]]"),
        ("{a: 0} | .a |= (1,2)", "null", "{\"a\":1}"),
        ("try (.[9] = 1) catch \"error\"", "[]", "\"error\""),
        ("@uri", "\"'\"", "\"%27\""),
        ("try test(\"(?=a)\") catch \"error\"", "\"a\"", "\"error\""),
    ] {
        assert_eq!(run(text, input).unwrap(), [ours], "{text}");
    }
    assert!(parse(b"\"\\ud800\"").is_err());
}
