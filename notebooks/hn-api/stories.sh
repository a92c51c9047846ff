#!/bin/sh
# The first stories of Hacker News, one JSON object a line: stories.sh BASE_URL COUNT
set -eu
curl -fsS --max-time 30 "$1/v0/topstories.json" | jq -r --argjson n "$2" '.[:$n][]' | while read -r number; do
  curl -fsS --max-time 30 "$1/v0/item/$number.json" | jq -c '{id, title, by, score, comments: (.descendants // 0), time, url}'
done
