package conformance

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// bugs are what a device can do wrong, each against one rule. Where caps is zero, the
// device is of the full profile.
var bugs = []struct {
	rule, bug string
	caps      wire.Caps
	secure    bool
}{
	{rule: "1.1", bug: "device in capitals"},
	{rule: "1.4", bug: "any port is forwarded"},
	{rule: "2.1", bug: "another path"},
	{rule: "2.2", bug: "an old WebSocket"},
	{rule: "2.2", bug: "the same key"},
	{rule: "2.2", bug: "any accept"},
	{rule: "2.2", bug: "any certificate", secure: true},
	{rule: "2.2", bug: "the name is not verified", secure: true},
	{rule: "2.2", bug: "no SNI", secure: true},
	{rule: "2.2", bug: "h2 in ALPN", secure: true},
	{rule: "2.3", bug: "no subprotocol"},
	{rule: "2.3", bug: "an extension"},
	{rule: "2.3", bug: "any subprotocol"},
	{rule: "2.3", bug: "any extension"},
	{rule: "2.4", bug: "no credential"},
	{rule: "2.4", bug: "token in the URL"},
	{rule: "2.4", bug: "no secret"},
	{rule: "2.5", bug: "the body decides"},
	{rule: "2.5", bug: "waits for an answer for 3 s"},
	{rule: "2.5", bug: "waits for an answer for ever"},
	{rule: "2.6", bug: "an Origin"},
	{rule: "2.7", bug: "the credential goes over ws to anyone"},
	{rule: "2.8", bug: "redirects lose their query"},
	{rule: "2.8", bug: "redirects go anywhere"},
	{rule: "2.8", bug: "redirects go to any path"},
	{rule: "2.8", bug: "redirects go from TLS to plain", secure: true},
	{rule: "2.8", bug: "no second way behind a redirect"},
	{rule: "2.8", bug: "redirect is asked for again"},
	{rule: "2.8", bug: "a second redirect is nothing special"},
	{rule: "2.10", bug: "a frame before the 101"},
	{rule: "2.10", bug: "what comes with the 101 is lost"},
	{rule: "2.10", bug: "no mask"},
	{rule: "2.10", bug: "the same mask"},
	{rule: "2.10", bug: "a reserved bit"},
	{rule: "2.10", bug: "masked frames are taken"},
	{rule: "2.10", bug: "forbidden frames are ignored"},
	{rule: "2.10", bug: "forbidden frames are closed with 4100"},
	{rule: "3.1", bug: "a number with a zero in front"},
	{rule: "3.1", bug: "streams twice"},
	{rule: "3.2", bug: "short instance"},
	{rule: "3.2", bug: "instance is stored"},
	{rule: "3.3", bug: "a kind in capitals"},
	{rule: "3.4", bug: "fewer streams than offered"},
	{rule: "3.4", bug: "long messages are cut", caps: basicCaps},
	{rule: "3.5", bug: "reuse without early"},
	{rule: "3.5", bug: "unknown capabilities are malformed"},
	{rule: "3.6", bug: "asks only"},
	{rule: "4.1", bug: "ready is not checked"},
	{rule: "4.1", bug: "a second ready is malformed"},
	{rule: "4.1", bug: "waits for ready for ever"},
	{rule: "4.2", bug: "a port without an address is malformed"},
	{rule: "4.3", bug: "type has to be first"},
	{rule: "4.3", bug: "messages of 4096 bytes are too long"},
	{rule: "4.3", bug: "refused is no flat object"},
	{rule: "4.4", bug: "unknown messages are malformed"},
	{rule: "4.4", bug: "unknown fields are malformed"},
	{rule: "4.5", bug: "malformed messages are ignored"},
	{rule: "4.5", bug: "malformed messages are closed with 1002"},
	{rule: "4.5", bug: "binary messages are ignored"},
	{rule: "4.6", bug: "says hello"},
	{rule: "5.1", bug: "pongs are empty"},
	{rule: "5.2", bug: "no watchdog"},
	{rule: "5.2", bug: "an impatient watchdog"},
	{rule: "5.3", bug: "leaves without a goodbye"},
	{rule: "5.3", bug: "streams end with the control socket"},
	{rule: "5.4", bug: "drain is ignored"},
	{rule: "5.4", bug: "leaves before it has another tunnel"},
	{rule: "5.4", bug: "leaves when the new tunnel fails"},
	{rule: "5.4", bug: "the old tunnel is left with 1001"},
	{rule: "5.4", bug: "the old tunnel's code counts"},
	{rule: "5.4", bug: "streams end with a drain"},
	{rule: "5.4", bug: "each drain counts"},
	{rule: "5.5", bug: "4001 is soon"},
	{rule: "5.5", bug: "4050 is soon"},
	{rule: "5.5", bug: "1012 is slow"},
	{rule: "5.5", bug: "4150 is slow"},
	{rule: "5.5", bug: "the end of TCP is taken for slowly"},
	{rule: "5.5", bug: "codes of transfer sockets count"},
	{rule: "5.6", bug: "401 is tried soon"},
	{rule: "5.6", bug: "403 is tried with backoff"},
	{rule: "5.6", bug: "409 is tried slowly"},
	{rule: "5.6", bug: "Retry-After is ignored"},
	{rule: "5.6", bug: "Retry-After has no bound"},
	{rule: "5.6", bug: "pauses are not random"},
	{rule: "5.6", bug: "lasting tunnels count as failures"},
	{rule: "5.7", bug: "one edge alone"},
	{rule: "6.1", bug: "web pages are not served"},
	{rule: "6.2", bug: "an id is used twice"},
	{rule: "6.3", bug: "transfer is put together"},
	{rule: "6.3", bug: "the first ready counts for ever"},
	{rule: "6.3", bug: "404 is the end of the tunnel"},
	{rule: "6.3", bug: "the service is left alone"},
	{rule: "6.4", bug: "refused has another number"},
	{rule: "6.4", bug: "refused has no reason"},
	{rule: "6.4", bug: "given up in silence"},
	{rule: "6.5", bug: "a byte is wrong now and then"},
	{rule: "6.5", bug: "the end of the service is the end of all"},
	{rule: "6.5", bug: "bytes behind the end"},
	{rule: "6.5", bug: "a slow service is not waited for"},
	{rule: "6.5", bug: "an end is not passed on", caps: basicCaps},
	{rule: "6.6", bug: "TCP is closed at once"},
	{rule: "6.6", bug: "streams are closed with 1001"},
	{rule: "6.6", bug: "waits for a close frame for ever"},
	{rule: "6.7", bug: "a close frame is an end"},
	{rule: "6.7", bug: "the end of TCP is an end"},
	{rule: "6.7", bug: "a reset is taken for an end", caps: basicCaps},
	{rule: "6.7", bug: "aborts are ends", caps: basicCaps},
	{rule: "6.8", bug: "pings on transfer sockets are ignored"},
	{rule: "6.9", bug: "text on a transfer socket is ignored"},
	{rule: "6.9", bug: "bytes behind the end are ignored"},
	{rule: "7.1", bug: "unknown statuses are tried slowly"},
	{rule: "8.1", bug: "strings are cut"},
	{rule: "8.2", bug: "a long request"},
	{rule: "9.1", bug: "frames of 8192 bytes"},
	{rule: "9.2", bug: "malformed frames are ignored"},
	{rule: "9.3", bug: "frames of unknown streams are malformed"},
	{rule: "9.3", bug: "frames of unknown kinds are ignored"},
	{rule: "9.4", bug: "a slow service blocks the control socket"},
	{rule: "10.1", bug: "less credit than offered"},
	{rule: "10.2", bug: "credit is ignored"},
	{rule: "10.3", bug: "fin is forgotten"},
	{rule: "10.3", bug: "move behind fin"},
	{rule: "10.4", bug: "streams without credit wait"},
	{rule: "10.4", bug: "a handshake is made once"},
	{rule: "10.4", bug: "handshakes are made without a pause"},
	{rule: "10.4", bug: "404 is tried again"},
	{rule: "10.5", bug: "fin behind move"},
	{rule: "10.5", bug: "the transfer socket is read at once"},
	{rule: "10.6", bug: "reset is an end"},
	{rule: "10.6", bug: "reset of an attached stream is ignored"},
	{rule: "10.6", bug: "the end of the transfer socket is ignored"},
	{rule: "10.7", bug: "refused is followed by reset"},
	{rule: "10.8", bug: "spent credit waits for ever"},
	{rule: "10.9", bug: "more than the credit is taken"},
	{rule: "10.9", bug: "bytes behind fin are taken"},
	{rule: "10.9", bug: "violations are ignored"},
	{rule: "10.10", bug: "streams survive their control socket"},
	{rule: "10.10", bug: "moved streams end with the control socket"},
	{rule: "11.1", bug: "nothing is parked"},
	{rule: "11.1", bug: "parked sockets stay for ever"},
	{rule: "11.1", bug: "close frames on parked sockets are not answered"},
	{rule: "11.2", bug: "attach has another id"},
	{rule: "11.3", bug: "bytes before attached"},
	{rule: "11.4", bug: "no handshake behind attach"},
	{rule: "11.4", bug: "waits for attached for ever"},
	{rule: "11.5", bug: "anything goes on parked sockets"},
	{rule: "11.5", bug: "unknown messages on parked sockets are malformed"},
	{rule: "12.1", bug: "inline dials", caps: inlineCaps},
	{rule: "12.1", bug: "a stream without credit is aborted in inline", caps: inlineCaps},
	{rule: "12.2", bug: "credit is not given", caps: inlineCaps},
	{rule: "12.2", bug: "credit is given twice", caps: inlineCaps},
	{rule: "12.3", bug: "credit beyond the window is taken", caps: inlineCaps},
	{rule: "12.3", bug: "credit for an ended direction is a violation", caps: inlineCaps},
}

// Each bug is found by the rule that it breaks, and by no other; with the race
// detector, which costs minutes, by no other of its section.
func TestBrokenDevices(t *testing.T) {
	for _, b := range bugs {
		t.Run(b.rule+" "+b.bug, func(t *testing.T) {
			t.Parallel()
			caps := b.caps
			if caps == 0 {
				caps = fullCaps
			}
			found := make(map[string]Result)
			var only []string
			if raceEnabled {
				section, _, _ := strings.Cut(b.rule, ".")
				only = []string{section}
			}
			for _, r := range results(t, caps, b.secure, b.bug, only...) {
				if r.Verdict == Fail {
					found[r.Rule] = r
				}
			}
			if _, ok := found[b.rule]; !ok {
				t.Error("nobody finds it")
			}
			for _, r := range found {
				if r.Rule != b.rule {
					t.Errorf("%s finds it too: %s\nexpected: %s\ncame:     %s", r.Rule, r.Name, r.Want, r.Came)
				}
			}
		})
	}
}

// Every rule of the document is in the table, with its cases or with the reason why
// there are none, and each rule that is tried has a bug which shows that it is.
func TestRulesOfTheDocument(t *testing.T) {
	doc, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, m := range regexp.MustCompile(`(?m)^\*\*(\d+\.\d+)`).FindAllStringSubmatch(string(doc), -1) {
		written = append(written, m[1])
	}
	var listed []string
	for _, r := range Rules {
		listed = append(listed, r.Number)
	}
	if !slices.Equal(written, listed) {
		t.Errorf("docs/protocol.md has the rules\n%v\nand the table\n%v", written, listed)
	}
	tried, broken := make(map[string]bool), make(map[string]bool)
	for _, c := range cases {
		tried[c.rule] = true
		if !slices.Contains(listed, c.rule) {
			t.Errorf("a case tries rule %s, which is not there", c.rule)
		}
	}
	for _, b := range bugs {
		broken[b.rule] = true
	}
	if !maps.Equal(tried, broken) {
		t.Error(fmt.Sprint("tried and broken are not the same rules: ", slices.Sorted(maps.Keys(tried)), slices.Sorted(maps.Keys(broken))))
	}
	for _, r := range Rules {
		if tried[r.Number] == (r.Unseen != "") {
			t.Errorf("rule %s is tried: %v; and the table says why it is not: %q", r.Number, tried[r.Number], r.Unseen)
		}
	}
}
