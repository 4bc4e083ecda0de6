package check

import (
	"crypto/tls"
	"fmt"
	"time"
)

// sane is a time that has passed when this was written: a clock that is behind it
// has never been set.
var sane = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// mostApart is how far a clock may be off without harm: tokens of the kind JWT and
// certificates are seldom younger.
const mostApart = time.Minute

// dateLayout is that of the header Date (RFC 9110 §5.6.7).
const dateLayout = "Mon, 02 Jan 2006 15:04:05 GMT"

const clockCure = "set the clock: `date -s`, or NTP (is udp port 123 let out? has this device a battery for its clock?)"

// clockAlone judges a clock that needs nobody to compare with.
func (c *checker) clockAlone() {
	if now := c.now(); now.Before(c.made()) {
		c.clock = true
		c.report(Finding{
			Hop: "clock", Verdict: Warning, Cure: clockCure,
			Text: now.UTC().Format(time.DateTime) + " UTC, before this program was made: it was never set; `run` judges certificates by the date that the edge tells",
		})
	}
}

// made is when this program was made, as far as it knows.
func (c *checker) made() time.Time {
	if c.Config.Built.After(sane) {
		return c.Config.Built
	}
	return sane
}

// moment is the time by which certificates are judged while no edge has told the
// date, as an agent does it.
func (c *checker) moment() time.Time {
	now := c.now()
	if made := c.made(); now.Before(made) {
		return made
	}
	return now
}

// byTheirDate judges certificates again if the clock was never set: by the date that
// the edge tells, as an agent does it. The finding is f if that does not help.
func (w *way) byTheirDate(conn *tls.Conn, name string, f Finding) Finding {
	if !w.now().Before(w.made()) {
		return f
	}
	a, err := w.ask(conn)
	date, parseErr := time.Parse(dateLayout, a.header["date"])
	if err != nil || parseErr != nil || date.Before(w.made()) {
		return f
	}
	said := date.Format(time.DateTime)
	chain := conn.ConnectionState().PeerCertificates
	if verify(chain, w.template().RootCAs, name, date) != nil {
		f.Cure = "it is not valid at the edge's date either, " + said + ": have the certificate renewed there"
		return f
	}
	return Finding{Verdict: OK, Text: fmt.Sprintf("%s, certificate for %s by %s until %s, judged by the edge's date, %s", tls.VersionName(conn.ConnectionState().Version),
		subject(chain[0]), issuer(chain), chain[0].NotAfter.UTC().Format(time.DateOnly), said)}
}

// clockAgainst judges the clock once, by the Date of an edge's answer.
func (w *way) clockAgainst(date string) {
	theirs, err := time.Parse(dateLayout, date)
	if w.clock || err != nil {
		return
	}
	w.clock = true
	now := w.now().UTC()
	f := Finding{Server: w.server, Hop: "clock", Verdict: OK, Text: now.Format(time.DateTime) + " UTC, as at the edge"}
	if apart := now.Sub(theirs).Abs(); apart > mostApart {
		f.Verdict, f.Cure = Warning, clockCure
		f.Text = fmt.Sprintf("%s UTC; the edge says %s", now.Format(time.DateTime), theirs.Format(time.DateTime))
	}
	w.report(f)
}

// aboutTime reports whether another time would make a certificate of conn valid.
func (w *way) aboutTime(conn *tls.Conn) bool {
	now := w.moment()
	for _, c := range conn.ConnectionState().PeerCertificates {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return true
		}
	}
	return false
}

// timeCure tells a clock that is wrong from a certificate that is too old. It asks
// the peer what time it is: nothing secret is sent, and the answer is for people.
func (w *way) timeCure(conn *tls.Conn) string {
	answer, err := w.ask(conn)
	theirs, parseErr := time.Parse(dateLayout, answer.header["date"])
	leaf := conn.ConnectionState().PeerCertificates[0]
	switch {
	case err == nil && parseErr == nil && w.now().Sub(theirs).Abs() <= 24*time.Hour:
		return "the clock agrees with the edge's: have the certificate renewed there"
	case err == nil && parseErr == nil:
		return fmt.Sprintf("the edge says it is %s: %s", theirs.Format(time.DateTime), clockCure)
	case w.now().Before(leaf.NotBefore):
		return clockCure
	}
	return "if the clock is right, have the certificate renewed; else " + clockCure
}
