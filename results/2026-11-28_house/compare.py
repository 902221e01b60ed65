"""Compare two metrics.jsonl, all columns but those of the clock: python compare.py A/metrics.jsonl B/metrics.jsonl"""
import json, sys
a=[json.loads(l) for l in open(sys.argv[1])]; b=[json.loads(l) for l in open(sys.argv[2])]
clock=lambda k: k.startswith("seconds") or k in("tokens_per_second","mfu","mbu","roofline")
d={}
for x,y in zip(a,b):
    for k in {**x,**y}:
        if not clock(k) and x.get(k,"missing")!=y.get(k,"missing"): d.setdefault(k,[]).append((x["step"],x.get(k,"missing"),y.get(k,"missing")))
print(len(a),len(b)); [print(k,v[:3]) for k,v in d.items()]
