def @csv: if isarray then . else error("cannot be csv-formatted, only an array can be") end
  | [.[] | if isstring then "\"" + gsub("\""; "\"\"") + "\""
      elif isnumber or isboolean then tostring elif . == null then ""
      else error("object or array is not valid in a csv row") end] | join(",");
def @tsv: if isarray then . else error("cannot be tsv-formatted, only an array can be") end
  | [.[] | if isstring then gsub("\\\\"; "\\\\") | gsub("\t"; "\\t") | gsub("\n"; "\\n") | gsub("\r"; "\\r")
      elif isnumber or isboolean then tostring elif . == null then ""
      else error("object or array is not valid in a tsv row") end] | join("\t");
def debug: .;
def debug(msgs): .;
def stderr: .;
def leaf_paths: paths(scalars);
def join($s): reduce .[] as $x (null; (if . == null then "" else . + $s end)
  + ($x | if . == null then "" elif isnumber or isboolean then tojson else . end)) // "";
