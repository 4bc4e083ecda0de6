package answers

import "strings"

// form is the shape of a body.
type form int

const (
	formText form = iota
	formHTML
	formJSON
)

// formFor chooses by the Accept header (RFC 9110 §12.5.1):
//
//   - the form with the greatest weight wins, so a browser gets the page, and
//     whoever prefers application/json gets JSON;
//   - of equal weights the one that is named more precisely wins, then the page
//     before JSON before text;
//   - who takes anything (curl's */*, an image in a page, no header at all) or
//     nothing that we have gets one line of text.
func formFor(accept []string) form {
	best, chosen := match{}, formText
	for _, offer := range []struct {
		form          form
		kind, subkind string
	}{
		{formHTML, "text", "html"},
		{formJSON, "application", "json"},
		{formText, "text", "plain"},
	} {
		m := matchOf(accept, offer.kind, offer.subkind)
		// Ranges with a wildcard do not tell the forms apart; text then wins.
		if m.better(best) || m == best && offer.form == formText && m.precision < exact {
			best, chosen = m, offer.form
		}
	}
	return chosen
}

// match is how well a media type fits an Accept header.
type match struct {
	weight    int // 0 to 1000; 0: not acceptable
	precision int
}

const (
	anyType    = iota + 1 // */*
	anySubtype            // text/*
	exact                 // text/html
)

func (m match) better(than match) bool {
	if m.weight != than.weight {
		return m.weight > than.weight
	}
	return m.weight > 0 && m.precision > than.precision
}

// matchOf weighs kind/subkind: the most precise range that covers it decides,
// and of equally precise ones the heaviest. Parameters other than the weight are
// not looked at, so `application/json;charset=utf-8` covers JSON. A range that is
// malformed covers nothing.
func matchOf(accept []string, kind, subkind string) match {
	var found match
	for _, field := range accept {
		for r := range elements(field, ',') {
			k, s, weight, ok := parseRange(r)
			if !ok {
				continue
			}
			m := match{weight: weight}
			switch {
			case k == "*" && s == "*":
				m.precision = anyType
			case s == "*" && strings.EqualFold(k, kind):
				m.precision = anySubtype
			case strings.EqualFold(k, kind) && strings.EqualFold(s, subkind):
				m.precision = exact
			default:
				continue
			}
			if m.precision > found.precision || m.precision == found.precision && m.weight > found.weight {
				found = m
			}
		}
	}
	return found
}

// parseRange reads one element of an Accept header. A lone `*` is `*/*`: some
// old clients send it.
func parseRange(s string) (kind, subkind string, weight int, ok bool) {
	weight = 1000
	first := true
	for part := range elements(s, ';') {
		part = strings.Trim(part, " \t")
		if first {
			first = false
			if part == "*" {
				part = "*/*"
			}
			kind, subkind, ok = strings.Cut(part, "/")
			if !ok || kind == "" || subkind == "" || strings.ContainsAny(part, " \t\"") || kind == "*" && subkind != "*" {
				return "", "", 0, false
			}
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		if strings.EqualFold(strings.TrimRight(name, " \t"), "q") {
			if weight, ok = parseWeight(strings.TrimLeft(value, " \t")); !ok {
				return "", "", 0, false
			}
			break // what follows are extensions of the range (RFC 7231 §5.3.2)
		}
	}
	return kind, subkind, weight, ok
}

// parseWeight reads a qvalue (RFC 9110 §12.4.2) in thousandths. It also takes
// more than three decimals and `.5`, which clients in the field do send.
func parseWeight(s string) (int, bool) {
	whole, decimals, _ := strings.Cut(s, ".")
	if whole != "0" && whole != "1" && (whole != "" || decimals == "") {
		return 0, false
	}
	weight, unit := 0, 100
	for _, c := range []byte(decimals) {
		if c < '0' || c > '9' {
			return 0, false
		}
		weight += int(c-'0') * unit
		unit /= 10
	}
	if whole == "1" {
		return 1000, weight == 0
	}
	return weight, true
}

// elements yields the parts of s between separators, save those in a quoted
// string (RFC 9110 §5.6.4).
func elements(s string, separator byte) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		start, quoted := 0, false
		for i := 0; i < len(s); i++ {
			switch c := s[i]; {
			case quoted && c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case c == separator && !quoted:
				if !yield(s[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(s[start:])
	}
}
