// Written by tools/generate_docs.py from nodes/page_words.py and nodes/translations/.

export const STRINGS = {
  "en": {
    "before": "before",
    "after": "after",
    "as trained": "as trained",
    "grey: as trained": "grey: as trained",
    "{size}: 1 tile of {tile}": "{size}: 1 tile of {tile}",
    "{size}: {count} tiles of {tile}": "{size}: {count} tiles of {tile}",
    "{memory} per batch (fp32)": "{memory} per batch (fp32)",
    "{memory} per tile (fp32)": "{memory} per tile (fp32)"
  },
  "zh": {
    "before": "处理前",
    "after": "处理后",
    "as trained": "与训练时相同",
    "grey: as trained": "灰色：训练时",
    "{size}: 1 tile of {tile}": "{size}：1 个 {tile} 的图块",
    "{size}: {count} tiles of {tile}": "{size}：{count} 个 {tile} 的图块",
    "{memory} per batch (fp32)": "每批 {memory}（fp32）",
    "{memory} per tile (fp32)": "每个图块 {memory}（fp32）"
  },
  "ja": {
    "before": "処理前",
    "after": "処理後",
    "as trained": "学習時と同じ",
    "grey: as trained": "灰色：学習時",
    "{size}: 1 tile of {tile}": "{size}：{tile}のタイル1枚",
    "{size}: {count} tiles of {tile}": "{size}：{tile}のタイル{count}枚",
    "{memory} per batch (fp32)": "1バッチあたり{memory}（fp32）",
    "{memory} per tile (fp32)": "1タイルあたり{memory}（fp32）"
  },
  "ko": {
    "before": "처리 전",
    "after": "처리 후",
    "as trained": "학습 때와 같음",
    "grey: as trained": "회색: 학습 때",
    "{size}: 1 tile of {tile}": "{size}: {tile} 타일 1개",
    "{size}: {count} tiles of {tile}": "{size}: {tile} 타일 {count}개",
    "{memory} per batch (fp32)": "배치당 {memory} (fp32)",
    "{memory} per tile (fp32)": "타일당 {memory} (fp32)"
  },
  "fr": {
    "before": "avant",
    "after": "après",
    "as trained": "comme à l’entraînement",
    "grey: as trained": "gris : comme à l’entraînement",
    "{size}: 1 tile of {tile}": "{size} : 1 tuile de {tile}",
    "{size}: {count} tiles of {tile}": "{size} : {count} tuiles de {tile}",
    "{memory} per batch (fp32)": "{memory} par lot (fp32)",
    "{memory} per tile (fp32)": "{memory} par tuile (fp32)"
  },
  "es": {
    "before": "antes",
    "after": "después",
    "as trained": "como en el entrenamiento",
    "grey: as trained": "gris: como en el entrenamiento",
    "{size}: 1 tile of {tile}": "{size}: 1 mosaico de {tile}",
    "{size}: {count} tiles of {tile}": "{size}: {count} mosaicos de {tile}",
    "{memory} per batch (fp32)": "{memory} por lote (fp32)",
    "{memory} per tile (fp32)": "{memory} por mosaico (fp32)"
  },
  "ru": {
    "before": "до",
    "after": "после",
    "as trained": "как при обучении",
    "grey: as trained": "серым: как при обучении",
    "{size}: 1 tile of {tile}": "{size}: 1 тайл {tile}",
    "{size}: {count} tiles of {tile}": "{size}: тайлы {tile}, {count} шт.",
    "{memory} per batch (fp32)": "{memory} на пакет (fp32)",
    "{memory} per tile (fp32)": "{memory} на тайл (fp32)"
  }
}
