package caddymodule

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// view returns a device as the operator's command shows it to scripts.
func (o *operator) view(id string) deviceView {
	o.t.Helper()
	var d deviceView
	if err := json.Unmarshal([]byte(o.must("device", id, "--output", "json")), &d); err != nil {
		o.t.Fatal(err)
	}
	return d
}

// happened waits until the history of a device, from its beginning on, is that.
func (o *operator) happened(id string, want ...string) deviceView {
	o.t.Helper()
	deadline := time.Now().Add(testWait)
	for {
		d := o.view(id)
		var events []string
		for _, e := range d.History {
			events = append([]string{e.Event}, events...)
		}
		if strings.Join(events, " ") == strings.Join(want, " ") {
			return d
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("history of %s: %q, want %q", id, events, want)
		}
	}
}

func TestHistory(t *testing.T) {
	f := start(t, config{})
	o := newOperator(t)
	d := f.connect("cam-1", testSite())
	o.happened("cam-1", "online")
	d.stop()
	o.happened("cam-1", "online", "offline")
	f.mustLoad(config{app: "wait 1s"}) // which changes nothing of it
	f.connect("cam-1", testSite())
	v := o.happened("cam-1", "online", "offline", "online")
	if v.Connects != 2 || v.History[1].Detail == "" || v.History[0].Node == "" || v.History[0].At.Before(v.History[2].At) {
		t.Errorf("%+v", v)
	}
	text := o.must("device", "cam-1")
	if !strings.Contains(text, "2 in 24 h") || strings.Count(text, "online ") < 2 || !strings.Contains(text, "offline ") {
		t.Errorf("for people:\n%s", text)
	}
}

func TestTags(t *testing.T) {
	f := start(t, config{})
	o := newOperator(t)
	f.connect("cam-1", testSite())
	f.connect("lyon-1", testSite())
	o.must("tag", "cam-1", "lyon", "fw=1.2")
	if d := o.view("cam-1"); strings.Join(d.Tags, " ") != "lyon fw=1.2" {
		t.Errorf("%+v", d)
	}
	listed := func(args ...string) string {
		t.Helper()
		var page devicePage
		if err := json.Unmarshal([]byte(o.must(append([]string{"devices", "--output", "json"}, args...)...)), &page); err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, d := range page.Devices {
			ids = append(ids, d.Device+"="+strings.Join(d.Tags, ","))
		}
		return strings.Join(ids, " ")
	}
	for want, args := range map[string][]string{
		"cam-1=lyon,fw=1.2 lyon-1=": {"--q", "lyon"},
		"cam-1=lyon,fw=1.2":         {"--tag", "lyon"},
		"":                          {"--tag", "ly"},
	} {
		if got := listed(args...); got != want {
			t.Errorf("devices %q: %q, want %q", args, got, want)
		}
	}
	if text := o.must("device", "cam-1"); !strings.Contains(text, "lyon fw=1.2") {
		t.Errorf("for people:\n%s", text)
	}
	o.fails("lower-case letters", "tag", "cam-1", "Lyon")
	o.fails("nothing is known", "tag", "nobody", "x")
	o.must("tag", "cam-1")
	if got := listed("--tag", "lyon"); got != "" {
		t.Errorf("after the tags were taken away: %q", got)
	}
}
