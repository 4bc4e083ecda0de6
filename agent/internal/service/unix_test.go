//go:build unix

package service

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/internal/golden"
	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// all are the managers of every system, with commands that are only noted.
func all(run func(...string) (string, error)) map[string]*scripted {
	found := make(map[string]*scripted)
	for _, m := range []Manager{systemd(run), procd(run), openrc(run), launchd(run)} {
		found[m.Name()] = m.(*scripted)
	}
	return found
}

var specs = map[string]Spec{
	"plain": {
		Program: "/usr/local/bin/iottunnel-agent",
		Args:    []string{"run", "--server=wss://edge.example.com", "--device=cam-{mac}", "--token-file=/etc/iottunnel/token", "--forward=80=127.0.0.1:8080", "--forward=22"},
		Files:   []string{"config", "token-file", "ca", "client-cert", "client-key"},
	},
	"odd": {
		Program: "/opt/my agents/iottunnel-agent",
		Args:    []string{"run", "--forward=80=a -b", "--config=/etc/it's/100%/a \"b\" $c\\d.yaml", "--status=127.0.0.1:9180", ""},
		Files:   []string{"config"},
		User:    "gate%way",
	},
}

func TestGolden(t *testing.T) {
	for manager, m := range all(nil) {
		for name, s := range specs {
			_, got, err := m.Describe(s)
			if err != nil {
				t.Fatal(err)
			}
			golden.Check(t, manager+"-"+name, got)
		}
	}
}

// What systemd says to the unit, where it is installed.
func TestUnitIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze")
	}
	program := filepath.Join(t.TempDir(), "iottunnel-agent")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, s := range specs {
		text, err := unitFile(s)
		if err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, `"`+s.Program+`"`, `"`+program+`"`) // which has to be there
		unit := filepath.Join(t.TempDir(), Name+".service")
		if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput()
		if err != nil || len(out) > 0 && strings.Contains(string(out), Name) {
			t.Errorf("%s: %v\n%s\n%s", name, err, out, text)
		}
	}
}

// A shell finds the words in the scripts again.
func TestScriptsAreShell(t *testing.T) {
	for name, s := range specs {
		want := strings.Join(append([]string{s.Program}, s.Args...), "|") + "|"
		procd, _ := procdScript(s)
		openrc, _ := openrcScript(s)
		for kind, script := range map[string]string{
			"procd": procd + "\nprocd_open_instance() { :; }\nprocd_close_instance() { :; }\n" +
				`procd_set_param() { if [ "$1" = command ]; then shift; printf '%s|' "$@"; fi; }` + "\nstart_service\n",
			"openrc": openrc + "\n" + `eval printf "'%s|'" "'$command'" "$command_args"` + "\n",
		} {
			out, err := exec.Command("/bin/sh", "-c", script).CombinedOutput()
			if err != nil || string(out) != want {
				t.Errorf("%s, %s: %v, %q; want %q", kind, name, err, out, want)
			}
		}
	}
}

func TestPlistIsXML(t *testing.T) {
	for name, s := range specs {
		text, err := plist(s)
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		d := xml.NewDecoder(strings.NewReader(text))
		for {
			token, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if c, ok := token.(xml.CharData); ok {
				words = append(words, string(c))
			}
		}
		for _, a := range s.Args {
			if !strings.Contains("\n"+strings.Join(words, "\n")+"\n", "\n"+a+"\n") {
				t.Errorf("%s: %q is not in it", name, a)
			}
		}
	}
}

func TestDescribeRefuses(t *testing.T) {
	for want, s := range map[string]Spec{
		"is below /root, which the service does not see": {Program: "/root/bin/agent"},
		"is below /tmp,": {Program: "/tmp/agent"},
		"an end of line": {Program: "/usr/bin/agent", Args: []string{"--a=b\nUser=root"}},
		"takes no colon": {Program: "/usr/bin/agent", Args: []string{"--token-file=/a:b"}, Files: []string{"token-file"}},
	} {
		if _, _, err := systemd(nil).Describe(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v; want %s", s, err, want)
		}
	}
}

func TestOldSystemd(t *testing.T) {
	for text, ok := range map[string]bool{"systemd 241 (241)\n+PAM": false, "systemd 247 (247.3-7)": true, "systemd 252 (252.39)": true, "what": true} {
		run := func(...string) (string, error) { return text, nil }
		if err := hasCredentials(Spec{}, run); (err == nil) != ok {
			t.Errorf("%s: %v", text, err)
		}
		if err := hasCredentials(Spec{User: "root"}, run); err != nil {
			t.Errorf("%s with a user: %v", text, err)
		}
	}
}

// The whole life of a service, with commands that are only noted.
func TestLife(t *testing.T) {
	for name := range all(nil) {
		var ran []string
		var fail error
		m := all(func(args ...string) (string, error) {
			ran = append(ran, strings.Join(args, " "))
			return map[bool]string{true: "inactive", false: "active\nstate = running"}[fail != nil], fail
		})[name]
		if name == "systemd" {
			run := m.run
			m.run = func(args ...string) (string, error) {
				text, err := run(args...)
				return strings.Split(text, "\n")[0], err
			}
		}
		m.path = filepath.Join(t.TempDir(), "file")
		if state, _, err := m.Status(); state != Absent || err != nil {
			t.Errorf("%s: %s, %v", name, state, err)
		}
		for what, do := range map[string]func() error{"start": m.Start, "stop": m.Stop, "uninstall": m.Uninstall} {
			if err := do(); !errors.Is(err, ErrAbsent) || ran != nil {
				t.Errorf("%s: %s: %v, %q", name, what, err, ran)
			}
		}
		for range 2 { // again: replaced
			if err := m.Install(specs["plain"]); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if info, err := os.Stat(m.path); err != nil || info.Mode().Perm() != m.mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		if err := errors.Join(m.Start(), m.Stop()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if state, _, err := m.Status(); state != Running || err != nil {
			t.Errorf("%s: %s, %v", name, state, err)
		}
		fail = errors.New("exit status 3")
		if state, _, err := m.Status(); state != Stopped || err != nil {
			t.Errorf("%s: %s, %v", name, state, err)
		}
		if err := m.Start(); !errors.Is(err, fail) {
			t.Errorf("%s: start that fails: %v", name, err)
		}
		fail = nil
		if err := m.Uninstall(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(m.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the file is left: %v", name, err)
		}
		// What somebody else wrote stays.
		if err := os.WriteFile(m.path, []byte("#!/bin/sh\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := m.Install(specs["plain"]); err == nil || !strings.Contains(err.Error(), "was not written by this program") {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %s", name, strings.Join(ran, "; "))
	}
}

func TestFind(t *testing.T) {
	if m, err := Find("upstart"); err == nil || !strings.Contains(err.Error(), `"upstart" is not a service manager that is known here: `) {
		t.Errorf("%v, %v", m, err)
	}
	for _, name := range Managers() {
		if m, err := Find(name); err != nil || m.Name() != name || m.Log() == "" {
			t.Errorf("%s: %v, %v", name, m, err)
		}
	}
}

func TestCommand(t *testing.T) {
	if text, err := command("sh", "-c", "echo well"); text != "well" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := command("sh", "-c", "echo no >&2; exit 3"); text != "no" || err == nil || err.Error() != "sh -c echo no >&2; exit 3: exit status 3: no" {
		t.Errorf("%q, %v", text, err)
	}
}
