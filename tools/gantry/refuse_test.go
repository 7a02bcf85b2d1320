package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestBadInputIsRefusedByName: each message names what is wrong and the way
// out, and nothing is written.
func TestBadInputIsRefusedByName(t *testing.T) {
	l := newLab(t)
	l.ok(deployment+"---"+service, "apply", "-f", "-")
	before := l.ok("", "get", "deploy,svc,cm,ns", "-o", "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation} {.metadata.labels}{\"\\n\"}{end}")
	broken := write(t, "broken", "a: [\n")
	notText := write(t, "settings.env", "A=\xff\n")
	none := filepath.Join(t.TempDir(), "none")
	for _, tc := range []struct {
		args string // separated by spaces; ~ stands for one within
		says string
	}{
		{"apply -k dir", "error: -k dir: gantry builds no kustomizations; build it first, for example with: kustomize build dir | gantry apply -f -"},
		{"apply --prune -f x", "error: --prune is not built"},
		{"apply --force-conflicts -f x", "error: --force-conflicts only works with --server-side"},
		{"apply --server-side --dry-run=client -f x", "use --dry-run=server"},
		{"apply --server-side --field-manager= -f x", "--field-manager that is not empty"},
		{"apply --dry-run=maybe -f x", `error: invalid dry-run value (maybe): must be "none", "server" or "client"`},
		{"apply --dry-run -f x", "error: --dry-run needs a value"},
		{"apply -o wide -f x", `a write has no output "wide"`},
		{"apply --validate=false -f x", "error: --validate=false: the server validates strictly always"},
		{"auth can-i get pods", `error: gantry auth knows no "can-i": it has whoami`},
		{"rollout abort deployment/web", `error: gantry rollout knows no "abort": it has history, pause, restart, resume, status, undo`},
		{"set selector service/web a=b", `error: gantry set knows no "selector": it has env, image, resources`},
		{"config delete-cluster x", `error: gantry config knows no "delete-cluster": it has `},
		{"top services", `error: gantry top knows no "services": it has node, pod`},
		{"autoscale deployment/web --max=3", "error: gantry has no autoscale: HorizontalPodAutoscaler is not supported by Gantry yet; set the number with gantry scale"},
		{"taint node n1 a=b:NoSchedule", "error: gantry has no taint: taints are not built; keep new pods away with gantry cordon"},
		{"create", "error: must specify one of -f and -"},
		{"create thing x", `error: gantry create knows no "thing": it creates namespace, deployment, service and configmap`},
		{"create secret generic x", "error: Secret is not supported by Gantry yet: "},
		{"create job x --image=y", "error: Job is not supported by Gantry yet: "},
		{"create node x", "error: nodes cannot be created: Gantry alone writes them"},
		{"create pod x", "error: gantry create has no shortcut for pods: write a manifest"},
		{"create namespace", "error: exactly one NAME is required, got 0"},
		{"create namespace default", `Error from server (AlreadyExists): failed to create namespace: namespaces "default" already exists`},
		{"create namespace No", `Error from server (Invalid): failed to create namespace: Namespace "No" is invalid: metadata.name`},
		{"create deployment x", "error: at least one image must be specified: --image=IMAGE"},
		{"create deployment x --image=a --port=70000", "error: --port=70000: must be between 1 and 65535"},
		{"create deployment x --image=a --replicas=-1", "error: --replicas=-1: must be greater than or equal to 0"},
		{"create deployment x --image=a --image=b -- run", "error: cannot specify multiple --image options and a command"},
		{"create service nodeport x --tcp=80", `error: no service of type "nodeport": Gantry has clusterip alone so far`},
		{"create service clusterip x", "error: at least one tcp port specifier must be provided"},
		{"create service clusterip x --tcp=0", `error: --tcp=0: port "0" is no number between 1 and 65535`},
		{"create service clusterip x --tcp=80:No_Port", `error: --tcp=80:No_Port: target port "No_Port" is neither`},
		{"create configmap x --from-literal=a", `error: invalid literal source "a", expected key=value`},
		{"create configmap x --from-literal=a/b=1", `error: --from-literal: "a/b" is not a valid key name for a ConfigMap`},
		{"create configmap x --from-literal=a=1 --from-literal=a=2", `cannot add key "a", another key by that name already exists`},
		{"create configmap x --from-file=" + none, "error: error reading " + none},
		{"create configmap x --from-env-file=" + notText, "not valid UTF-8"},
		{"create configmap x --from-env-file=" + notText + " --from-literal=a=1", "cannot be combined"},
		{"run", "error: NAME is required for run"},
		{"run x", "error: --image is required"},
		{"run x y --image=a", "error: exactly one NAME is required"},
		{"run x --image=a --restart=Sometimes", "error: invalid restart policy: Sometimes; there are Always, OnFailure and Never"},
		{"run x --image=a --image-pull-policy=Sometimes", "error: invalid image pull policy: Sometimes"},
		{"run x --image=a --port=http", `error: --port: port "http" is no number`},
		{"run x --image=a --env=A", `error: --env "A" is not KEY=VALUE`},
		{"run x --image=a -t", "error: -i/--stdin is required for containers with -t/--tty=true"},
		{"run x --image=a --rm", "error: --rm should only be used for attached containers: add -i or --attach"},
		{"run x --image=a --rm --attach", "error: --rm without -i waits for the container to end for good: add --restart=Never"},
		{"run x --image=a -i --dry-run=client", "error: --dry-run=client can't be used with attached containers options"},
		{"run x --image=a -i -o yaml", "error: -o cannot be used with attached containers options"},
		{"run x --image=a -i --expose --port=80", "error: --expose cannot be used with attached containers options"},
		{"run x --image=a --expose", "error: --port must be set when exposing a service"},
		{"run x --image=a --command", "error: --command needs the command after --"},
		{"run X --image=a", `Error from server (Invalid): failed to create pod: Pod "X" is invalid: [metadata.name: Invalid value: "X"`},
		{"expose deployment/web --type=NodePort", "error: --type=NodePort: Gantry has Services of type ClusterIP alone so far"},
		{"expose node/n1", "error: node/n1 cannot be exposed: pods, services, deployments and replicasets can"},
		{"expose deployment/none", `Error from server (NotFound): deployments.apps "none" not found`},
		{"label", "error: at least one label update is required"},
		{"label deployment/web", "error: at least one label update is required: KEY=VALUE sets one, KEY- takes one off"},
		{"label deployment/web =x", `error: invalid label "=x": it has no key`},
		{"label deployment a=b web", "error: all resources must be specified before label changes: web"},
		{"label deployment/web a=b a-", `error: can not both modify and remove the label "a" in the same command`},
		{"label deployments a=b", "error: resource(s) were provided, but no name was specified: name one of the deployments, or give a selector (-l) or --all"},
		{"label deployment/web bad~key=b", "Error from server (Invalid)"},
		{"label deployment/web a=b --resource-version=zero", "Error from server"},
		{"label deployment/web service/web a=b --resource-version=1", "error: --resource-version may only be used with a single object"},
		{"label deployment/web a=b --list -o yaml", "error: --list and --output may not be specified together"},
		{"label things/x a=b", `error: the server doesn't have a resource type "things"`},
		{"label deployment/none a=b", `Error from server (NotFound): deployments.apps "none" not found`},
		{"patch deployment/web", "error: must specify --patch or --patch-file"},
		{"patch deployment/web --type=other -p {}", `error: --type must be one of json, merge and strategic, not "other"`},
		{"patch deployment/web --type=merge -p []", "error: the patch of --patch is no object: with --type merge it looks like"},
		{"patch deployment/web --type=json -p {}", "error: the patch of --patch is no list of operations: with --type json it looks like"},
		{"patch deployment/web --type=merge -p {", "error: unable to parse the patch of --patch"},
		{"patch deployment/web --patch-file=" + broken, "error: unable to parse the patch of " + broken},
		{"patch deployment/web --patch-file=" + none, "error: unable to read patch file"},
		{"patch deployment/web -p {} --patch-file=x", "error: cannot specify --patch and --patch-file together"},
		{"patch deployment/web -p {} --subresource=log", `error: invalid subresource value: "log"; there are status and scale`},
		{"patch deployment/web --type=json -p [] --dry-run=client", "use --dry-run=server"},
		{"patch deployment/web --type=merge -p {\"spec\":{\"replicas\":-1}}", "Error from server (Invalid)"},
		{"set image deployment/web", "error: at least one image update is required: CONTAINER=IMAGE"},
		{"set image deployment/web app=x", `error: unable to find container named "app" in Deployment "web"`},
		{"set image deployment/web w*=x", `error: unable to find container named "w*": only * alone stands for all containers`},
		{"set image service/web app=x", `error: Service "web" runs no containers: it has no spec.template.spec`},
		{"set image deployment/web web=", "Error from server (Invalid)"},
		{"set env deployment/web", "error: at least one environment variable must be provided"},
		{"set env deployment/web -c none A=b", `error: unable to find container named "none"`},
		{"set env deployment/web A=b --list", "error: --list shows variables and takes no changes: A=b"},
		{"set env deployment/web -e A", `error: Deployment "web": environment variable "A" is neither NAME=VALUE nor NAME-`},
		{"set resources deployment/web", "error: you must specify an update to requests or limits"},
		{"set resources deployment/web --limits=cpu=much", `error: --limits cpu: "much" is no amount: write 100m, 0.5 or 64Mi`},
		{"set resources deployment/web --limits=cpu", `error: --limits "cpu" is not KEY=VALUE`},
		{"scale deployment/web", "error: the --replicas=COUNT flag is required"},
		{"scale --replicas=1 service/web", "error: cannot scale service/web: deployments and replicasets have a number of replicas"},
		{"scale --replicas=1 deployment/web --current-replicas=7", "error: expected replicas to be 7, was 2"},
		{"scale --replicas=1 deployments", "error: resource(s) were provided, but no name was specified"},
		{"rollout undo service/web", "error: service/web cannot roll out: deployments can"},
		{"rollout undo deployment/web --to-revision=-1", "error: --to-revision must be a positive integer"},
		{"rollout history deployment/web --revision=-1", "error: revision must be a positive integer"},
		{"rollout history deployment/web --revision=5", "error: unable to find specified revision 5 in the history of deployment \"web\": there are 1"},
		{"rollout restart deployment/none", `Error from server (NotFound): deployments.apps "none" not found`},
		{"replace", "error: must specify one of -f and -"},
		{"replace --force --dry-run=server -f x", "error: --dry-run can not be used when --force is set"},
		{"replace --subresource=scale -f x", `error: invalid subresource value: "scale"; only status can be replaced`},
		{"edit deployment/web -o name", "error: the editor shows yaml or json, not -o name"},
		{"edit deployment/none", `Error from server (NotFound): deployments.apps "none" not found`},
		{"edit deployment/web --subresource=scale", `error: invalid subresource value: "scale"; only status can be edited`},
		{"delete deployment/web --dry-run=maybe", "error: invalid dry-run value (maybe)"},
		{"cordon", "error: USAGE: name a NODE, or select some with -l"},
		{"cordon deployment/web", "error: deployment.apps/web cannot be cordoned or drained: nodes can"},
		{"drain n2", `Error from server (NotFound): nodes "n2" not found`},
	} {
		t.Run(tc.args, func(t *testing.T) {
			l := *l
			l.T = t
			words := strings.Fields(tc.args)
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "~", " ")
			}
			out, stderr := l.fails("", words...)
			if out != "" || !strings.HasPrefix(stderr, firstWord(tc.says)) || !strings.Contains(stderr, tc.says) {
				t.Errorf("want %q, got:\n%s%s", tc.says, out, stderr)
			}
		})
	}
	expect(t, "nothing was written", before, l.ok("", "get", "deploy,svc,cm,ns", "-o", "jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.generation} {.metadata.labels}{\"\\n\"}{end}"))
}

// firstWord is how a message begins, where says does not leave it open.
func firstWord(says string) string {
	for _, w := range []string{"error: ", "Error from server"} {
		if strings.HasPrefix(says, w) {
			return w
		}
	}
	return ""
}
