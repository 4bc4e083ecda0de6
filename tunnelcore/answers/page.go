package answers

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html"
	"strconv"
	"strings"
	"time"
)

// The page is this file with its variables replaced: {{code}}, {{status}},
// {{title}}, {{text}}, {{next}}, {{fault}} and the fragments {{refresh}},
// {{again}}, {{seen}} and {{detail}}, which are empty where they do not apply.
// Every value is escaped (& ' < > "), and each stands in text or in a quoted
// attribute. A variable in a value is not replaced again.
//
//go:embed page.html
var pageTemplate string

// The fragments, with {{}} for their one value.
const (
	refreshFragment = "<meta http-equiv=\"refresh\" content=\"{{}}\">\n"
	againFragment   = "<p class=\"again\"><a href=\"\">Try now</a></p>\n"
	seenFragment    = "<div><dt>Last seen</dt><dd>{{}}</dd></div>\n"
	detailFragment  = "<div><dt>Detail</dt><dd>{{}}</dd></div>\n"
	refreshSentence = "This page tries again by itself every {{}} seconds."
)

// Bounds of a refresh that follows RetryAfter, in seconds: not a burden, and not
// forgotten.
const (
	refreshMin = 5
	refreshMax = 120
)

// contentPolicy allows the page its own style sheet and nothing else. It goes
// with every answer.
var contentPolicy = "default-src 'none'; style-src 'sha256-" + styleHash() + "'; base-uri 'none'; form-action 'none'"

func styleHash() string {
	_, style, ok := strings.Cut(pageTemplate, "<style>")
	style, _, closed := strings.Cut(style, "</style>")
	if !ok || !closed {
		panic("answers: the page has no style")
	}
	sum := sha256.Sum256([]byte(style))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// page renders the answer for a browser; safe says that the request may be
// repeated.
func (e *Error) page(safe bool) []byte {
	entry := entryOf(e.Code)
	next, refresh, again, seen, detail := html.EscapeString(entry.Next), "", "", "", ""
	if seconds := e.refreshSeconds(); seconds > 0 && safe {
		refresh = fill(refreshFragment, strconv.Itoa(seconds))
		next = fill(refreshSentence, strconv.Itoa(seconds))
		again = againFragment
	}
	if !e.LastSeen.IsZero() {
		t := e.LastSeen.UTC()
		seen = fill(seenFragment, `<time datetime="`+t.Format(time.RFC3339)+`">`+t.Format("2 Jan 2006, 15:04")+` UTC</time>`)
	}
	if m := e.message(); m != entry.Message {
		detail = fill(detailFragment, html.EscapeString(m))
	}
	return []byte(strings.NewReplacer(
		"{{code}}", html.EscapeString(string(e.Code)),
		"{{status}}", strconv.Itoa(entry.Status),
		"{{title}}", html.EscapeString(entry.Title),
		"{{text}}", html.EscapeString(entry.Text),
		"{{next}}", next,
		"{{fault}}", entry.Fault,
		"{{refresh}}", refresh,
		"{{again}}", again,
		"{{seen}}", seen,
		"{{detail}}", detail,
	).Replace(pageTemplate))
}

func fill(fragment, value string) string { return strings.Replace(fragment, "{{}}", value, 1) }

// refreshSeconds is when the page asks again; 0: not by itself.
func (e *Error) refreshSeconds() int {
	seconds := entryOf(e.Code).Refresh
	if retry := e.retrySeconds(); seconds > 0 && retry > 0 {
		seconds = min(max(retry, refreshMin), refreshMax)
	}
	return seconds
}
