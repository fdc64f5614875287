{{/*
Whether what the settings ask for fits the worker groups, as `dq_cluster.cluster.room` decides it on a
running cluster. Ray would wait for ever, and the release stay DEPLOYING without a reason. The defaults
of settings that a release leaves out, and what processes take at least, are in sizes.yaml.
*/}}

{{/* A quantity in thousandths, rounded up: 1500 for 1.5 and 1500m, 1024000 for 1Ki. */}}
{{- define "dq.thousandths" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9]*\\.?[0-9]+" $text -}}
{{- $unit := trimPrefix $number $text -}}
{{- $amount := float64 $number -}}
{{- if hasSuffix "i" $unit -}}
{{- $amount = mulf $amount 1000 -}}
{{- range list "Ki" "Mi" "Gi" "Ti" "Pi" -}}
{{- if $unit -}}{{- $amount = mulf $amount 1024 -}}{{- end -}}
{{- if eq . $unit -}}{{- $unit = "" -}}{{- end -}}
{{- end -}}
{{- else if ne $unit "m" -}}
{{- $amount = mulf $amount 1000 -}}
{{- range list "k" "M" "G" "T" "P" -}}
{{- if $unit -}}{{- $amount = mulf $amount 1000 -}}{{- end -}}
{{- if eq . $unit -}}{{- $unit = "" -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- ceil $amount | int64 -}}
{{- end }}

{{/* A CPU or GPU amount of the settings in ten-thousandths, as Ray counts. */}}
{{- define "dq.parts" -}}{{- round (mulf (float64 .) 10000) 0 | int64 -}}{{- end }}

{{/* Bytes as decimal gigabytes, with two places. */}}
{{- define "dq.gigabytes" -}}{{- printf "%.2f GB" (divf (float64 .) 1e9) -}}{{- end }}

{{/* `2 CPUs, 0.5 GPUs, 0.30 GB`, of ten-thousandths and bytes. */}}
{{- define "dq.amounts" -}}
{{- $words := list -}}
{{- range $kind, $amount := dict "CPU" .cpus "GPU" .gpus -}}
{{- if or $amount (eq $kind "CPU") -}}
{{- $words = append $words (printf "%v %s%s" (divf (float64 $amount) 10000) $kind (ternary "" "s" (eq (int64 $amount) 10000))) -}}
{{- end -}}
{{- end -}}
{{- if .memory -}}{{- $words = append $words (include "dq.gigabytes" .memory) -}}{{- end -}}
{{- join ", " $words -}}
{{- end }}

{{/*
Fails unless every process has a place. Takes a dict: what (a path of the values), needs (a list of
dicts: what, count, cpus, gpus, memory in bytes; those that ask for most first), groups (worker groups),
autoscaling (bool), node (bytes that a node takes itself), advice.
*/}}
{{- define "dq.checkRoom" -}}
{{- $nodes := list -}}{{- $has := list -}}
{{- range $name, $group := .groups -}}
{{- $limits := $group.resources.limits -}}
{{- /* KubeRay rounds CPUs up to whole ones. */ -}}
{{- $cpus := div (add (include "dq.thousandths" (default 0 $limits.cpu) | int64) 999) 1000 -}}
{{- $gpus := div (include "dq.thousandths" (default 0 (index $limits "nvidia.com/gpu")) | int64) 1000 -}}
{{- $memory := div (include "dq.thousandths" (default 0 $limits.memory) | int64) 1000 -}}
{{- $count := ternary $group.maxReplicas $group.replicas $.autoscaling | int -}}
{{- $has = append $has (printf "%s of %d × (%s)" $name $count (include "dq.amounts" (dict "cpus" (mul $cpus 10000) "gpus" (mul $gpus 10000) "memory" $memory))) -}}
{{- range until $count -}}
{{- $nodes = append $nodes (dict "cpus" (mul $cpus 10000) "gpus" (mul $gpus 10000) "memory" (max 0 (sub $memory $.node))) -}}
{{- end -}}
{{- end -}}
{{- $lacking := list -}}{{- $all := dict "cpus" 0 "gpus" 0 "memory" 0 -}}
{{- range .needs -}}
{{- $cpus := include "dq.parts" .cpus | int64 -}}{{- $gpus := include "dq.parts" .gpus | int64 -}}
{{- $memory := int64 .memory -}}{{- $left := int64 .count -}}
{{- $each := include "dq.amounts" (dict "cpus" $cpus "gpus" $gpus "memory" $memory) -}}
{{- if and (gt $gpus 10000) (mod $gpus 10000) -}}
{{- fail (printf "%s: %s GPUs for each of the %s: Ray gives whole GPUs, or a part of one" $.what (toString .gpus) .what) -}}
{{- end -}}
{{- range $kind, $amount := dict "cpus" $cpus "gpus" $gpus "memory" $memory -}}
{{- $_ := set $all $kind (add (index $all $kind) (mul $left $amount)) -}}
{{- end -}}
{{- range $node := $nodes -}}
{{- $here := $left -}}
{{- if $cpus -}}{{- $here = min $here (div $node.cpus $cpus) -}}{{- end -}}
{{- if ge $gpus 10000 -}}
{{- $here = min $here (div $node.gpus $gpus) -}}
{{- else if $gpus -}}
{{- /* A part of a GPU is of one GPU. */ -}}
{{- $here = min $here (add (mul (div $node.gpus 10000) (div 10000 $gpus)) (div (mod $node.gpus 10000) $gpus)) -}}
{{- end -}}
{{- if $memory -}}{{- $here = min $here (div $node.memory $memory) -}}{{- end -}}
{{- $_ := set $node "cpus" (sub $node.cpus (mul $here $cpus)) -}}
{{- $_ := set $node "gpus" (sub $node.gpus (mul $here $gpus)) -}}
{{- $_ := set $node "memory" (sub $node.memory (mul $here $memory)) -}}
{{- $left = sub $left $here -}}
{{- end -}}
{{- if $left -}}
{{- $lacking = append $lacking (printf "no room for %d of %d %s (each %s)" $left (int64 .count) .what $each) -}}
{{- end -}}
{{- end -}}
{{- if $lacking -}}
{{- $own := ternary (printf ", of which %s are each node's own" (include "dq.gigabytes" .node)) "" (gt (int64 .node) 0) -}}
{{- fail (printf "%s does not fit its worker groups: %s; it asks for %s in all; there are %s%s: %s" .what (join ", " $lacking) (include "dq.amounts" $all) (default "no workers" (join ", " $has)) $own .advice) -}}
{{- end -}}
{{- end }}

{{/* Bytes of one shard of `serve.plan`: what `dq-cluster plan` says of a replica. */}}
{{- define "dq.planned" -}}
{{- $plan := .plan -}}
{{- $rows := div (add $plan.images (sub .shards 1)) .shards -}}
{{- $code := div $plan.bits 8 -}}
{{- $own := ternary .bytes.cell_row .bytes.row $plan.cells -}}
{{- $again := ternary $code 0 (and (eq (int $plan.nbits) 4) (not $plan.cells)) -}}
{{- $lists := ternary (add (mul (ternary 2 1 $plan.cells) $code) .bytes.label) 0 .gpu -}}
{{- add (mulf $rows (addf $code $own (max $again $lists)) | int64) .bytes.process -}}
{{- end }}

{{- define "dq.checkServeRoom" -}}
{{- $sizes := .Files.Get "sizes.yaml" | fromYaml -}}{{- $bytes := $sizes.bytes -}}{{- $serve := .Values.serve -}}
{{- $asked := mustMergeOverwrite (deepCopy $sizes.serve) (deepCopy $serve.settings) -}}
{{- $allowed := mulf (float64 $asked.memory_gb) 1e9 | int64 -}}
{{- $memory := max $allowed (int64 $bytes.process) -}}
{{- if $serve.plan -}}
{{- $plan := mustMergeOverwrite (deepCopy $sizes.plan) (deepCopy $serve.plan) -}}
{{- $gpu := gt (float64 $asked.gpus) 0.0 -}}
{{- $planned := include "dq.planned" (dict "plan" $plan "shards" (int64 $asked.shards) "bytes" $bytes "gpu" $gpu) | int64 -}}
{{- if and $allowed (gt (sub $planned $bytes.process) $allowed) -}}
{{- fail (printf "serve.settings.memory_gb %v is too little: the codes of %d images in %d shards take %s of each replica (serve.plan); raise it, or shards" $asked.memory_gb (int64 $plan.images) (int64 $asked.shards) (include "dq.gigabytes" (sub $planned $bytes.process))) -}}
{{- end -}}
{{- $memory = max $memory $planned -}}
{{- end -}}
{{- $head := div (include "dq.thousandths" $serve.head.resources.limits.memory | int64) 1000 -}}
{{- if lt $head (int64 $bytes.head) -}}
{{- fail (printf "serve.head has %s of memory: Ray's head and Serve's controller take %s; raise serve.head.resources.limits.memory" (include "dq.gigabytes" $head) (include "dq.gigabytes" $bytes.head)) -}}
{{- end -}}
{{- $replicas := dict "what" "replicas of shards" "count" (mul $asked.shards $asked.replicas) "cpus" $asked.cpus "gpus" $asked.gpus "memory" $memory -}}
{{- $routers := dict "what" "routers" "count" $asked.routers "cpus" $asked.cpus "gpus" 0 "memory" $bytes.router -}}
{{- $keeper := dict "what" "keepers of versions" "count" 1 "cpus" 0 "gpus" 0 "memory" $bytes.keeper -}}
{{- $advice := "lower shards, replicas, routers or cpus of serve.settings, or raise replicas or resources of serve.workerGroups" -}}
{{- include "dq.checkRoom" (dict "what" "serve.settings" "needs" (list $replicas $routers $keeper) "groups" $serve.workerGroups "autoscaling" $serve.autoscaling.enabled "node" (int64 $bytes.node) "advice" $advice) -}}
{{- end }}

{{/* (list root workload job) */}}
{{- define "dq.checkJobRoom" -}}
{{- $root := index . 0 -}}{{- $workload := index . 1 -}}{{- $job := index . 2 -}}
{{- $sizes := $root.Files.Get "sizes.yaml" | fromYaml -}}
{{- $settings := $job.settings -}}{{- $need := dict -}}{{- $advice := "" -}}
{{- if has $workload (list "featurize" "encode" "build" "add") -}}
{{- $pool := mustMergeOverwrite (deepCopy $sizes.encoders) (deepCopy (default dict $settings.pool)) -}}
{{- $need = dict "what" "encoders" "count" $pool.encoders "cpus" (add 1 $pool.decoders) "gpus" $pool.gpus -}}
{{- $advice = "lower pool.encoders, pool.decoders or pool.gpus" -}}
{{- else if has $workload (list "neighbours" "duplicates") -}}
{{- $pool := mustMergeOverwrite (deepCopy $sizes.finders) (deepCopy (default dict $settings.pool)) -}}
{{- $need = dict "what" "finders of neighbours" "count" $pool.workers "cpus" $pool.cpus "gpus" 0 -}}
{{- $advice = "lower pool.workers or pool.cpus" -}}
{{- else if eq $workload "train" -}}
{{- $asked := mustMergeOverwrite (deepCopy $sizes.train) (deepCopy $settings) -}}
{{- $fewest := $asked.workers -}}{{- if kindIs "map" $fewest -}}{{- $fewest = $fewest.min -}}{{- end -}}
{{- $need = dict "what" "workers" "count" $fewest "cpus" $asked.cpus_per_worker "gpus" (ternary 1 0 $asked.use_gpu) -}}
{{- $advice = "lower workers or cpus_per_worker, or train without use_gpu" -}}
{{- end -}}
{{- if $need -}}
{{- $advice = printf "%s of jobs.%s.settings, or raise replicas or resources of jobs.%s.workerGroups" $advice $workload $workload -}}
{{- $_ := set $need "memory" 0 -}}
{{- include "dq.checkRoom" (dict "what" (printf "jobs.%s.settings" $workload) "needs" (list $need) "groups" $job.workerGroups "autoscaling" $root.Values.jobDefaults.autoscaling "node" 0 "advice" $advice) -}}
{{- end -}}
{{- end }}
