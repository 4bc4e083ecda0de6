package main

import (
	"fmt"
	"strconv"
	"strings"
)

// setting is a key of the configuration file with its values.
type setting struct {
	key    string
	line   int
	list   bool // the values stand in a list, though there may be one or none
	values []scalar
}

type scalar struct {
	text string
	line int
}

// lineError says which line cannot be read.
type lineError struct {
	line int
	why  string
}

func (e *lineError) Error() string { return "line " + strconv.Itoa(e.line) + ": " + e.why }

// parseYAML reads the part of YAML that settings need: keys with scalars, or with
// lists of scalars in either style, and comments. Whatever it accepts means the
// same to every reader of YAML; of the rest it says on which line it stands, as a
// *lineError. A YAML library would make the program half a megabyte bigger.
func parseYAML(text string) ([]setting, error) {
	var settings []setting
	var open *setting // its value has not come yet, or is a list that goes on
	indent := -1      // of its items
	fail := func(line int, why string) error { return &lineError{line, why} }
	for i, raw := range strings.Split(text, "\n") {
		number := i + 1
		raw = strings.TrimSuffix(raw, "\r")
		line := strings.TrimLeft(raw, " ")
		deep := len(raw) - len(line)
		if reason := unprintable(raw); reason != "" {
			return nil, fail(number, reason)
		}
		switch {
		case line == "" || line[0] == '#':
			continue
		case strings.TrimRight(raw, " ") == "---" && len(settings) == 0:
			continue
		case line == "-" || strings.HasPrefix(line, "- "):
			if open == nil || indent >= 0 && deep != indent {
				return nil, fail(number, "a list item does not belong here")
			}
			value, err := readScalar(line[1:])
			if err != "" {
				return nil, fail(number, err)
			}
			indent, open.list = deep, true
			open.values = append(open.values, scalar{value, number})
			continue
		}
		if open != nil && !open.list {
			return nil, fail(open.line, open.key+" has no value")
		}
		key, rest, found := strings.Cut(line, ":")
		if !found || deep > 0 || !isKey(key) || rest != "" && rest[0] != ' ' {
			return nil, fail(number, "not of the form `key: value`")
		}
		settings = append(settings, setting{key: key, line: number})
		open, indent = &settings[len(settings)-1], -1
		rest = strings.TrimLeft(rest, " ")
		var err string
		switch {
		case rest == "" || rest[0] == '#':
			continue // a list follows
		case rest[0] == '[':
			open.list = true
			var texts []string
			texts, err = readFlow(rest[1:])
			for _, t := range texts {
				open.values = append(open.values, scalar{t, number})
			}
		default:
			var value string
			value, err = readScalar(rest)
			open.values = []scalar{{value, number}}
		}
		if err != "" {
			return nil, fail(number, err)
		}
		open = nil
	}
	if open != nil && !open.list {
		return nil, fail(open.line, open.key+" has no value")
	}
	return settings, nil
}

func isKey(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && c != '_' && c != '-' {
			return false
		}
	}
	return s != "" && s[0] != '-'
}

// unprintable says which character of a line YAML does not take, or takes for
// something else than it looks like.
func unprintable(line string) string {
	for _, r := range line {
		if !strconv.IsPrint(r) || r == '\ufffd' {
			return fmt.Sprintf("character %+q is not possible here", r)
		}
	}
	return ""
}

// readScalar reads a value and the comment that may follow it. why is empty when
// all is well.
func readScalar(s string) (value, why string) {
	s = strings.TrimLeft(s, " ")
	value, rest, why := cutScalar(s, false)
	if why == "" && !isComment(rest) {
		why = fmt.Sprintf("%q behind a value", strings.TrimSpace(rest))
	}
	return value, why
}

// readFlow reads `a, b]` and the comment that may follow it.
func readFlow(s string) (values []string, why string) {
	s = strings.TrimLeft(s, " ")
	if rest, ok := strings.CutPrefix(s, "]"); ok && isComment(rest) {
		return nil, ""
	}
	for {
		value, rest, why := cutScalar(strings.TrimLeft(s, " "), true)
		if why != "" {
			return nil, why
		}
		values = append(values, value)
		rest = strings.TrimLeft(rest, " ")
		switch {
		case strings.HasPrefix(rest, ","):
			s = rest[1:]
		case strings.HasPrefix(rest, "]") && isComment(rest[1:]):
			return values, ""
		default:
			return nil, "a list that does not end on its line"
		}
	}
}

// isComment reports whether nothing that counts stands in s, behind a value.
func isComment(s string) bool {
	trimmed := strings.TrimLeft(s, " ")
	return trimmed == "" || trimmed[0] == '#' && len(trimmed) < len(s)
}

// cutScalar reads the value with which s begins. flow: it stands in [ ].
func cutScalar(s string, flow bool) (value, rest, why string) {
	switch {
	case s == "" || s[0] == '#':
		return "", "", "a value is missing"
	case s[0] == '"':
		return cutQuoted(s[1:], '"')
	case s[0] == '\'':
		return cutQuoted(s[1:], '\'')
	}
	end := len(s)
	if i := strings.Index(s, " #"); i >= 0 {
		end = i
	}
	if flow {
		if i := strings.IndexAny(s[:end], ",]"); i >= 0 {
			end = i
		}
	}
	value, rest = strings.TrimRight(s[:end], " "), s[end:]
	switch {
	case value == "" || value == "~" || strings.EqualFold(value, "null"):
		return "", "", "a value is missing"
	case strings.ContainsRune("[]{},#&*!|>'\"%@`?", rune(value[0])),
		value[0] == '-' && (len(value) == 1 || value[1] == ' '),
		value[0] == ':',
		value[0] == '.' && strings.HasPrefix(value, "..."),
		strings.HasPrefix(value, "---"),
		strings.Contains(value, ": "), strings.HasSuffix(value, ":"),
		flow && strings.ContainsAny(value, "[{}?"): // some readers end a value at ? there
		return "", "", fmt.Sprintf("%s needs quotes", value)
	}
	return value, rest, ""
}

// cutQuoted reads up to the closing quote.
func cutQuoted(s string, quote byte) (value, rest, why string) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quote == '"':
			i++
			if i == len(s) || s[i] != '\\' && s[i] != '"' {
				return "", "", `of the escapes, only \\ and \" are possible`
			}
			b.WriteByte(s[i])
		case c == quote && quote == '\'' && strings.HasPrefix(s[i+1:], "'"):
			i++
			b.WriteByte(c)
		case c == quote:
			return b.String(), s[i+1:], ""
		default:
			b.WriteByte(c)
		}
	}
	return "", "", "the closing quote is missing"
}
