package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// openWrt stands in for OpenWrt's rc.common and functions.sh: a configuration is read
// as the shell that it nearly is, and what procd would run is printed, a word per line.
const openWrt = `
config() { :; }
option() { eval "option_$1=\$2"; }
list() { eval "list_$1=\"\${list_$1:-}\$2
\""; }
config_load() { [ "$1" = iottunnel ] && . "$CONFIG"; }
config_foreach() { "$1" agent; }
config_get() { eval "$1=\${option_$3:-\${list_$3:-\${4:-}}}"; }
config_get_bool() { config_get "$@"; }
config_list_foreach() {
	local IFS='
' each
	eval "set -- \"\$3\" \$list_$2"
	f=$1
	shift
	for each; do "$f" "$each"; done
}
logger() { echo "$*" >&2; }
procd_open_instance() { words=; }
procd_set_param() {
	[ "$1" = command ] || return 0
	procd_append_param "$@"
}
procd_append_param() {
	[ "$1" = command ] || return 0
	shift
	for each; do words="$words$each
"; done
}
procd_close_instance() { printf %s "$words"; }
. "$INIT"
start_service
`

// openWrtInit is the init script of the packages.
const openWrtInit = "../packaging/openwrt/iottunnel-agent/files/iottunnel.init"

// openWrtRuns is the command that an init script has procd run with this configuration,
// and what it logs.
func openWrtRuns(t *testing.T, init, config string) (words []string, log string) {
	t.Helper()
	file := writeFile(t, filepath.Join(t.TempDir(), "iottunnel"), config)
	init, err := filepath.Abs(init)
	if err != nil {
		t.Fatal(err)
	}
	// The status is the shell's last test, which rc.common does not look at.
	_, out, errs := harness.RunToEnd(t, time.Minute, harness.Command{
		Name: "iottunnel.init", Args: []string{"sh", "-c", openWrt}, Env: []string{"CONFIG=" + file, "INIT=" + init},
	})
	return strings.Fields(out), errs
}

// TestOpenWrt has the init script of the OpenWrt packages turn their configuration
// into commands, and runs these with both agents against an edge.
func TestOpenWrt(t *testing.T) {
	t.Parallel()
	shipped, err := os.ReadFile("../packaging/openwrt/iottunnel-agent/files/iottunnel.config")
	if err != nil {
		t.Fatal(err)
	}
	if words, log := openWrtRuns(t, openWrtInit, string(shipped)); len(words) != 0 || log != "" {
		t.Errorf("as installed it runs %q, %s; it is to be configured first", words, log)
	}
	enabled := strings.Replace(string(shipped), "enabled '0'", "enabled '1'", 1)
	want := []string{
		"/usr/bin/iottunnel-agent", "run", "--server=wss://edge.example.com", "--forward=80=127.0.0.1:80", "--forward=22",
		"--device=router-17", "--token-file=/etc/iottunnel/token",
	}
	if words, log := openWrtRuns(t, openWrtInit, enabled); !slices.Equal(words, want) || log != "" {
		t.Errorf("runs %q, %s; want %q", words, log, want)
	}
	for _, name := range []string{"server", "device", "forward"} {
		var kept []string
		for line := range strings.Lines(enabled) {
			if !strings.Contains(line, " "+name+" ") {
				kept = append(kept, line)
			}
		}
		if words, log := openWrtRuns(t, openWrtInit, strings.Join(kept, "")); len(words) != 0 || !strings.Contains(log, "option "+name+" is needed") {
			t.Errorf("without %s: runs %q, %s", name, words, log)
		}
	}

	f := harness.Shared(t, harness.Kinds[slices.IndexFunc(harness.Kinds, func(k harness.Kind) bool { return k.Name() == "plain" })])
	for name, program := range map[string]string{"go": harness.Binary(t, "iottunnel-agent"), "c": sanitized(t)} {
		t.Run(name, func(t *testing.T) {
			d, o := f.NewDevice(t), harness.StartOrigin(t)
			token := writeFile(t, filepath.Join(t.TempDir(), "token"), d.Token+"\n")
			words, log := openWrtRuns(t, openWrtInit, fmt.Sprintf("config agent 'agent'\n\toption enabled '1'\n\tlist server '%s'\n\toption device '%s'\n"+
				"\toption token_file '%s'\n\tlist forward '80=%s'\n\toption profile 'inline'\n\toption heartbeat '30s'\n\toption max_backoff '1m'\n",
				f.Servers()[0], d.ID, token, o.Addr))
			if len(words) == 0 {
				t.Fatalf("runs nothing: %s", log)
			}
			words[0] = program // and the shell leaves out what the harness adds
			a := harness.StartAgent(t, f, harness.AgentSetup{
				Device: d, Forwards: []string{"80=" + o.Addr}, Command: []string{"sh", "-c", `exec ` + quoted(words), "sh"},
			})
			s := &site{face: f, origin: o, agent: a, host: a.Up(t).Hostname(t, 80), client: harness.Visitor(t, f, false)}
			s.mustServe(t)
			if status := a.Stop(t, 30*time.Second); status != 0 {
				t.Errorf("status %d after SIGTERM", status)
			}
		})
	}
}

// quoted is words for a shell.
func quoted(words []string) string {
	var b strings.Builder
	for _, w := range words {
		b.WriteString("'" + strings.ReplaceAll(w, "'", `'\''`) + "' ")
	}
	return b.String()
}
